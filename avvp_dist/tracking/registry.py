"""Registered models by name: `models:/avvp-encoder@candidate` to a folder with verified files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from avvp_dist.commit import MANIFEST, folder_digest, verify_folder
from avvp_dist.errors import CheckpointError, StorageError, first_line
from avvp_dist.tracking.packaging import export_in
from avvp_dist.tracking.server import (
    connect,
    fault,
    redacted,
    tracking_uri,
    waiting,
)

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

PREFIX = "models:/"

_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")
"""MLflow's codes for a name, an alias or a version that it does not know."""


class Model(NamedTuple):
    """An exported model on disk, and its origin."""

    folder: Path
    version: str = ""
    """`NAME/VERSION` in the registry; empty if the model was given as a folder."""
    run: str = ""
    """Id of the MLflow run that made the version; empty for a folder."""


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model; as a string, `NAME/VERSION`."""

    name: str
    number: str
    source: str
    """Artifact URI of its files."""
    run_id: str
    """Id of the MLflow run that made it; may be empty."""
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name}/{self.number}"


class Registry:
    """The model registry of the MLflow server. Its methods raise whatever MLflow raises."""

    def __init__(self) -> None:
        self._client = connect()

    def find(self, model: str) -> ModelVersion:
        """The version that `NAME@ALIAS` or `NAME/VERSION` names."""
        name, at, alias = model.partition("@")
        if at:
            return _version(self._client.get_model_version_by_alias(name, alias))
        return _version(self._client.get_model_version(*name.rsplit("/", 1)))

    def find_alias(self, name: str, alias: str) -> ModelVersion | None:
        """The version that has the alias now; None if no version has it."""
        number = self._client.get_registered_model(name).aliases.get(alias)
        return _version(self._client.get_model_version(name, number)) if number else None

    def set_alias(self, version: ModelVersion, alias: str) -> None:
        """Move an alias to a version."""
        self._client.set_registered_model_alias(version.name, alias, version.number)

    def run_params(self, version: ModelVersion) -> dict[str, str]:
        """Params of the run that made a version: its config, flattened."""
        return dict(self._client.get_run(version.run_id).data.params)


def _version(entry: MlflowVersion) -> ModelVersion:
    return ModelVersion(
        entry.name, str(entry.version), entry.source, entry.run_id or "", dict(entry.tags)
    )


def resolve(model: str, into: Path) -> Model:
    """Find an exported model, and download it if it is registered.

    Args:
        model: a folder, `models:/NAME@ALIAS` or `models:/NAME/VERSION`. A folder may hold an
            export or an MLflow model around one.
        into: folder that a registered model is downloaded to.

    Raises:
        CheckpointError: if there is no such folder, name, alias or version, or the files in the
            registry are not those that were registered.
    """
    if not model.startswith(PREFIX):
        folder = Path(model)
        if not folder.is_dir():
            raise CheckpointError(f"{folder} does not exist", remedy="Give an exported model")
        return Model(export_in(folder))
    with registry_errors(model):
        version = Registry().find(model.removeprefix(PREFIX))
        folder = fetch(version.source, version.tags.get("digest", ""), into, str(version))
    return Model(folder, str(version), version.run_id)


def fetch(source: str, digest: str, into: Path, name: str) -> Path:
    """Download a model and verify the export in it; raises whatever MLflow raises.

    Args:
        source: artifact URI of an MLflow model, or of a bare export of an older version.
        digest: `commit.folder_digest` of the export; empty: unknown, and nothing is verified.
        name: name of the model in an error.

    Returns:
        Folder of the export.

    Raises:
        CheckpointError: if the files are others, with the name of one.
    """
    from mlflow import artifacts

    into /= f"model-{digest[:12]}"  # another version may lie beside it
    into.mkdir(parents=True, exist_ok=True)
    downloaded = artifacts.download_artifacts(
        artifact_uri=source, dst_path=str(into), tracking_uri=tracking_uri()
    )
    folder = export_in(Path(downloaded))
    if digest and folder_digest(folder) != digest:
        # If the manifest agrees with every file it lists, the manifest itself was replaced.
        wrong = verify_folder(folder) or [f"{folder / MANIFEST} or what lies beside it was changed"]
        raise CheckpointError(
            f"{name}: its files are not those that were registered: {wrong[0]}",
            remedy="Register the model again, or take another version",
        )
    return folder


@contextmanager
def registry_errors(model: str) -> Iterator[None]:
    """Turn what MLflow raises about a model into one line, and say what is waited for.

    Raises:
        CheckpointError: for a model that is not there.
        StorageError: for a store that does not answer or cannot be used.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # of a database that MLflow opens itself

    try:
        with waiting():
            yield
    except (MlflowException, SQLAlchemyError, OSError, TypeError) as error:
        known = isinstance(error, MlflowException) and error.error_code in _NOT_THERE
        if not known and not isinstance(error, OSError | TypeError):
            raise StorageError(fault(error), remedy="Check MLFLOW_TRACKING_URI") from None
        raise CheckpointError(
            f"{model} is not in the registry of {redacted(tracking_uri())}: "
            f"{redacted(first_line(error))}",
            remedy="Check MLFLOW_TRACKING_URI, the name and the alias",
        ) from None
