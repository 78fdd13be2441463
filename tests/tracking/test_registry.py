"""Models by name or folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from avvp_dist.errors import CheckpointError
from avvp_dist.tracking.registry import resolve


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(str(tmp_path), tmp_path / "into") == (tmp_path, "")
    assert not (tmp_path / "into").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path}/nothing does not exist"):
        resolve(str(tmp_path / "nothing"), tmp_path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An SQLite store with one model, version 1, without its files."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    client.create_registered_model("avvp-known")
    client.create_model_version("avvp-known", (folder / "gone").as_uri())
    client.set_registered_model_alias("avvp-known", "candidate", "1")
    return uri


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
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with pytest.raises(CheckpointError) as caught:
        resolve(f"models:/{model}", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"models:/{model} is not in the registry of {store}: ")
    assert "\n" not in message
