"""Address of the MLflow store, used and printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from avvp_dist.tracking.server import redacted, tracking_uri


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:secret@host:5000/api fails", "http://host:5000/api fails"),
        ("https://token@host", "https://host"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("http://host/a@b me@host", "http://host/a@b me@host"),
    ],
)
def test_passwords_are_not_printed(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_without_a_server_the_store_is_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert tracking_uri() == "http://server"
