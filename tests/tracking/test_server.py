"""Address of the MLflow store, used and printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from avvp_dist.errors import StorageError
from avvp_dist.tracking.server import connect, fault, redacted, tracking_uri


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


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://127.0.0.1:9/#/experiments/1", "a page in a browser. Set it to http://127.0.0.1:9"),
        ("https://me:secret@host/mlflow/#/models", "in a browser. Set it to https://host/mlflow"),
        ("http://host:5000#", "a page in a browser. Set it to http://host:5000"),
        ("sqlite:////no/such/folder/mlflow.db", "there is no folder /no/such/folder. Make it"),
        ("sqlite:///none/mlflow.db", "there is no folder "),
    ],
)
def test_an_address_that_is_no_store_is_named_at_once(
    uri: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StorageError) as caught:
        connect()
    assert told in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionRefusedError("no"), "does not answer (ConnectionRefusedError: no)"),
        (RuntimeError("API request failed with exception x"), "does not answer (RuntimeError: "),
        (RuntimeError("INVALID_PARAMETER"), "does not take the records (RuntimeError: INVALID"),
        (StorageError("the disk is full"), "the disk is full"),
    ],
)
def test_a_fault_is_said_as_it_was_seen(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host")
    assert told in fault(error) and "secret" not in fault(error)
