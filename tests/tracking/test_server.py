"""How the server is named."""

from __future__ import annotations

import pytest

from avvp_dist.tracking.server import shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:secret@host:5000/api fails", "http://host:5000/api fails"),
        ("https://token@host", "https://host"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("http://host/a@b me@host", "http://host/a@b me@host"),
    ],
)
def test_passwords_are_not_shown(text: str, expected: str) -> None:
    assert shown(text) == expected
