"""Models by name or folder."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from avvp_dist.errors import CheckpointError, StorageError
from avvp_dist.tracking.registry import resolve

if TYPE_CHECKING:
    from mlflow import MlflowClient


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(str(tmp_path), tmp_path / "into") == (tmp_path, "", "")
    assert not (tmp_path / "into").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path}/nothing does not exist"):
        resolve(str(tmp_path / "nothing"), tmp_path)


@pytest.mark.parametrize(
    "model",
    [
        "avvp-unknown@candidate",
        "avvp-known@champion",
        "avvp-known/7",
        "avvp-known/latest",
        "avvp-known",
        "avvp-known@candidate",  # its files are gone
        "",
    ],
)
def test_what_the_registry_lacks_is_one_line(
    client: MlflowClient, tmp_path: Path, model: str
) -> None:
    client.create_registered_model("avvp-known")
    client.create_model_version("avvp-known", (tmp_path / "gone").as_uri())
    client.set_registered_model_alias("avvp-known", "candidate", "1")
    with pytest.raises(CheckpointError) as caught:
        resolve(f"models:/{model}", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"models:/{model} is not in the registry of {client.tracking_uri}: ")
    assert "\n" not in message


def test_a_server_that_is_no_mlflow_is_no_missing_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(StorageError, match=r"127.0.0.1:\d+ cannot be used \(.* error code 404"):
            resolve("models:/avvp-encoder@candidate", tmp_path)
        server.shutdown()


def test_a_database_that_another_process_writes_is_no_missing_model(
    client: MlflowClient, tmp_path: Path
) -> None:
    client.create_registered_model("avvp-known")
    with contextlib.closing(sqlite3.connect(client.tracking_uri.removeprefix("sqlite:///"))) as one:
        one.isolation_level = None
        one.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match=r"cannot be used .*database is locked"):
            resolve("models:/avvp-known@candidate", tmp_path)
