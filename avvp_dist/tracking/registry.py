"""Models by name: `models:/avvp-encoder@candidate` to a folder on disk, its files checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from avvp_dist.commit import MANIFEST, folder_digest, verify_folder
from avvp_dist.errors import CheckpointError, first_line
from avvp_dist.tracking.server import connect, shown, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX = "models:/"


class Model(NamedTuple):
    """An exported model on disk, and where it comes from."""

    folder: Path
    version: str = ""
    """`NAME/VERSION`; empty for a folder, which no registry was asked about."""
    run: str = ""
    """Id of the MLflow run that made the version."""


def resolve(model: str, into: Path) -> Model:
    """An exported model.

    Args:
        model: a folder, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        into: where a registered model is downloaded to.

    Raises:
        CheckpointError: if there is no such folder, name, alias or version, or the registry's
            files are not those that were registered.
    """
    if not model.startswith(PREFIX):
        folder = Path(model)
        if not folder.is_dir():
            raise CheckpointError(f"{folder} does not exist", remedy="Give an exported model")
        return Model(folder)
    with asking(model):
        version = find_version(connect(), model.removeprefix(PREFIX))
        name = f"{version.name}/{version.version}"
        folder = fetch(version.source, version.tags.get("digest", ""), into, name)
    return Model(folder, name, version.run_id or "")


def find_version(client: MlflowClient, model: str) -> Any:
    """MLflow's entry of `NAME@ALIAS` or `NAME/VERSION`; raises what MLflow does."""
    name, at, alias = model.partition("@")
    if at:
        return client.get_model_version_by_alias(name, alias)
    return client.get_model_version(*name.rsplit("/", 1))


def fetch(source: str, digest: str, into: Path, name: str) -> Path:
    """Download the files at `source`, an artifact URI, and check them; raises what MLflow does.

    Args:
        digest: what `commit.folder_digest` said of them; empty: unknown, so they are not checked.
        name: what an error calls them.

    Raises:
        CheckpointError: if they are other files, with the name of one.
    """
    from mlflow import artifacts

    into.mkdir(parents=True, exist_ok=True)
    folder = Path(
        artifacts.download_artifacts(
            artifact_uri=source, dst_path=str(into), tracking_uri=tracking_uri()
        )
    )
    if digest and folder_digest(folder) != digest:
        # Where the manifest agrees with all it lists, it is not the one that was registered.
        wrong = verify_folder(folder) or [f"{folder / MANIFEST} or what lies beside it was changed"]
        raise CheckpointError(
            f"{name}: its files are not those that were registered: {wrong[0]}",
            remedy="Register the model again, or take another version",
        )
    return folder


@contextmanager
def asking(model: str) -> Iterator[None]:
    """Turn what MLflow raises about `model` into one line.

    Raises:
        CheckpointError: in its place.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError, TypeError) as error:
        raise CheckpointError(
            f"{model} is not in the registry of {shown(tracking_uri())}: "
            f"{shown(first_line(error))}",
            remedy="Check MLFLOW_TRACKING_URI, the name and the alias",
        ) from None
