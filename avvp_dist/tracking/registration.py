"""Registration of an export: an MLflow model, a version of a registered model, its aliases."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avvp_dist.commit import folder_digest
from avvp_dist.models.specification import CONFIG, read_spec
from avvp_dist.tracking.descriptions import NOTE, describe_model, describe_version
from avvp_dist.tracking.packaging import is_export, package
from avvp_dist.tracking.records import RegisterRecord
from avvp_dist.tracking.registry import fetch

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion


def register(
    client: MlflowClient, run_id: str, record: RegisterRecord, figures: Sequence[str]
) -> None:
    """Send files, version and aliases in this order: no alias names a version without files.

    It may be cut off anywhere and called again. Files that are registered already stay the same
    version. Raises whatever MLflow raises.

    Args:
        figures: pictures to show with the version, as paths among the artifacts of the run.

    Raises:
        CheckpointError: if the files arrived damaged.
    """
    name, digest = record.model, record.tags["digest"]
    _ensure_model(client, name)
    known = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    version = next((one for one in known if one.tags.get("digest") == digest), None)
    if version is None:
        if not _is_unchanged(record):
            # The run went on and replaced them, and registers the new ones itself.
            tag = f"not_registered.model-{digest[:12]}"
            client.set_tag(run_id, tag, "its files were replaced")
            return
        model = _send_model(client, run_id, record)
        tags = {**record.tags, "parent_run": run_id, "logged_model": model.model_id}
        version = client.create_model_version(
            name, model.artifact_location, run_id, tags=tags, model_id=model.model_id
        )
    _describe(client, version, record, figures)
    for alias in record.aliases:
        client.set_registered_model_alias(name, alias, version.version)
    client.set_tag(run_id, "registered", f"{name}/{version.version}")


def _send_model(client: MlflowClient, run_id: str, record: RegisterRecord) -> LoggedModel:
    """Make the logged model of a run, with verified files, or find the one that is there."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    digest, run = record.tags["digest"], client.get_run(run_id)
    experiment = run.info.experiment_id
    known = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    model = next((one for one in known if one.tags.get("digest") == digest), None)
    model = model or client.create_logged_model(
        experiment, record.model, run_id, tags=dict(record.tags)
    )
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory() as scratch:
            files = Path(record.folder)
            if is_export(files):
                files = package(files, Path(scratch) / "model", model.model_id, run_id)
            client.log_model_artifacts(model.model_id, str(files))
            fetch(model.artifact_location, digest, Path(scratch), f"{record.model}, just sent")
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    if model.model_id not in [output.model_id for output in run.outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    return model


def _describe(
    client: MlflowClient, version: ModelVersion, record: RegisterRecord, figures: Sequence[str]
) -> None:
    """Describe a version and its logged model, and link the two."""
    model, folder = version.tags.get("logged_model"), Path(record.folder)
    if version.description or not model or not (is_export(folder) and _is_unchanged(record)):
        return
    name, run = f"{version.name}/{version.version}", client.get_run(version.run_id)
    text = describe_version(name, read_spec(folder / CONFIG), run, figures)
    link = json.dumps([{"name": version.name, "version": str(version.version)}])
    client.set_logged_model_tags(model, {NOTE: text, "mlflow.modelVersions": link})
    client.update_model_version(version.name, version.version, text)


def _is_unchanged(record: RegisterRecord) -> bool:
    folder = Path(record.folder)
    return folder.is_dir() and folder_digest(folder) == record.tags["digest"]


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    text = describe_model(name)
    try:
        client.create_registered_model(name, description=text)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if text and not client.get_registered_model(name).description:
            client.update_registered_model(name, text)
