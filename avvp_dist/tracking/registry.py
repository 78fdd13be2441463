"""Models by name: `models:/avvp-encoder@candidate` to a folder on disk."""

from __future__ import annotations

import os
from pathlib import Path

from avvp_dist.errors import CheckpointError
from avvp_dist.tracking.mlflow_feed import tracking_uri

PREFIX = "models:/"


def resolve(model: str, into: Path) -> tuple[Path, str]:
    """The folder of an exported model, and its registry version, `NAME/VERSION` or empty.

    Args:
        model: a folder, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        into: where a registered model is downloaded to.

    Raises:
        CheckpointError: if there is no such folder, name, alias or version.
    """
    if not model.startswith(PREFIX):
        folder = Path(model)
        if not folder.is_dir():
            raise CheckpointError(f"{folder} does not exist", remedy="Give an exported model")
        return folder, ""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient, artifacts
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri(), tracking_uri())
    name, at, alias = model.removeprefix(PREFIX).partition("@")
    try:
        if at:
            version = client.get_model_version_by_alias(name, alias)
        else:
            version = client.get_model_version(*name.rsplit("/", 1))
        into.mkdir(parents=True, exist_ok=True)
        folder = artifacts.download_artifacts(
            artifact_uri=version.source, dst_path=str(into), tracking_uri=tracking_uri()
        )
    except (MlflowException, OSError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{model} is not in the registry of {tracking_uri()}: {reason}",
            remedy="Check MLFLOW_TRACKING_URI, the name and the alias",
        ) from None
    return Path(folder), f"{version.name}/{version.version}"
