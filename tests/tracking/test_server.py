"""Address of the MLflow store, used and printed."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avvp_dist.config import CalibrateConfig, PromoteConfig, TrackingConfig
from avvp_dist.errors import StorageError
from avvp_dist.tracking import run as tracked
from avvp_dist.tracking import server
from avvp_dist.tracking.mlflow_exporter import sync
from avvp_dist.tracking.promotion import promote
from avvp_dist.tracking.registry import resolve
from avvp_dist.tracking.run import Run, stage_run
from avvp_dist.tracking.server import connect, database, fault, redacted, tracking_uri


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


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
@example("a b%20c?d#e")
def test_the_store_lies_in_any_working_folder(name: str) -> None:
    if {"/", "\0"} & set(name) or name in (".", "..") or len(name.encode()) > 200:
        return
    before = Path.cwd()
    with TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        (folder := Path(temporary, name)).mkdir()
        patch.chdir(folder)
        assert database(tracking_uri()) == folder / "mlflow.db"
        patch.chdir(before)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://127.0.0.1:9/#/experiments/1", "a page in a browser. Set it to http://127.0.0.1:9"),
        ("https://me:secret@host/mlflow/#/models", "in a browser. Set it to https://host/mlflow"),
        ("http://host:5000#", "a page in a browser. Set it to http://host:5000"),
        ("sqlite:////no/such/folder/mlflow.db", "there is no folder /no/such/folder. Make it"),
        ("sqlite:///none/mlflow.db", "there is no folder "),
        ("127.0.0.1:5000", "=127.0.0.1:5000 has no protocol. Set it to http://127.0.0.1:5000"),
        (
            "host:5000/mlflow",
            "=host:5000/mlflow has no protocol. Set it to http://host:5000/mlflow",
        ),
        ("sqlite://", "is a database in memory"),
        ("sqlite:///:memory:", "is a database in memory"),
        ("sqlite:////dev/null/mlflow.db", "there is no folder /dev/null. Make it"),
        (
            "sqlite:////proc/mlflow.db",
            "////proc/mlflow.db cannot be used (OperationalError: ",
        ),
        ("sqlite:////", "cannot be used (OperationalError: "),
        ("sqlite:///{folder}", "cannot be used (OperationalError: "),
        ("sqlite:///{folder}/garbage.db", "garbage.db cannot be used (DatabaseError: "),
        ("postgresql://me:secret@127.0.0.1:9/x", "/x needs a driver that is not installed (Module"),
        ("mysql://me:secret@127.0.0.1:9/x", "127.0.0.1:9/x needs a driver that is not installed ("),
        (
            "mssql+pyodbc://me:secret@h/x",
            "pyodbc://h/x needs a driver that is not installed (",
        ),
        (
            "mysql+pymysql://me:secret@127.0.0.1:9/x",
            "127.0.0.1:9/x cannot be used (OperationalErr",
        ),
        ("mysql+pymysql://127.0.0.1:{silent}/x", "/x does not answer within 0.5 s"),
        ("mysql+nosuch://127.0.0.1/x", "cannot be used (NoSuchModuleError: "),
        ("sqlite+nosuch:///x.db", "cannot be used (NoSuchModuleError: "),
        ("postgres://127.0.0.1/x", "cannot be used (UnsupportedModelRegistryStoreURIException: "),
        ("nosuch://x", "nosuch://x cannot be used (UnsupportedModelRegistryStoreURIException: "),
    ],
)
def test_an_address_that_is_no_store_is_named_at_once(
    uri: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_SECONDS_TO_OPEN", 0.5 if "{silent}" in uri else 15.0)
    (tmp_path / "garbage.db").write_bytes(b"no database" * 100)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections and says nothing
        uri = uri.format(folder=tmp_path, silent=silent.getsockname()[1])
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        started = time.monotonic()
        with pytest.raises(StorageError) as caught:
            connect()
    assert time.monotonic() - started < 15
    assert told in str(caught.value) and "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


UNUSABLE = [
    "mysql+pymysql://me:secret@127.0.0.1:9/x",
    "postgresql://me:secret@127.0.0.1:9/x",
    "sqlite:////proc/mlflow.db",
    "http://127.0.0.1:9",
    "nosuch://x",
]
COMMANDS: dict[str, Callable[[Path], object]] = {
    "promote": lambda folder: promote(PromoteConfig(model="avvp-parser")),
    "a registered model": lambda folder: resolve("models:/avvp-parser@champion", folder),
    "sync": sync,
}


@pytest.mark.parametrize("uri", UNUSABLE)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_ends_with_one_line(
    command: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    Run("calibrate", tmp_path, CalibrateConfig(tracking=TrackingConfig(enabled=False)), {}).close()
    with pytest.raises(StorageError) as caught:
        COMMANDS[command](tmp_path)
    message = str(caught.value)
    assert redacted(uri) in message and "secret" not in message and "\n" not in message


@pytest.mark.parametrize("uri", UNUSABLE)
def test_a_stage_goes_on_without_its_store(
    uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(tracked, "_SECONDS_OF_PATIENCE", 0.0)
    with stage_run("calibrate", tmp_path / "run", CalibrateConfig(), {}) as run:
        run.log(0, loss=1.0)
    warning, hint = capfd.readouterr().err.splitlines()
    assert warning.startswith(f"MLflow: {redacted(uri)} ")
    assert warning.endswith(f"; the run goes on and keeps its records in {tmp_path}/run")
    assert hint.endswith(f"send them with: avvp sync {tmp_path}/run")


def test_a_long_wait_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "_SECONDS_OF_SILENCE", 0.05)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host")
    with server.waiting():
        time.sleep(0.5)
    assert capfd.readouterr().err == "waiting for http://host\n"
    with server.waiting():
        pass
    time.sleep(0.2)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionRefusedError("no"), "does not answer (ConnectionRefusedError: no)"),
        (RuntimeError("API request failed with exception x"), "does not answer (RuntimeError: "),
        (RuntimeError("INVALID_PARAMETER"), "cannot be used (RuntimeError: INVALID"),
        (StorageError("the disk is full"), "the disk is full"),
    ],
)
def test_a_fault_is_said_as_it_was_seen(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host")
    assert told in fault(error) and "secret" not in fault(error)
