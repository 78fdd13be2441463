"""Registration: a version that MLflow loads, linked to its run, and versions of older releases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.image
import numpy as np
import pytest

from avvp_dist.commit import folder_digest
from avvp_dist.config import CalibrateConfig, EvaluateConfig, ParserConfig, TrackingConfig
from avvp_dist.models.export import build_parser, save_model
from avvp_dist.models.specification import ParserSpec
from avvp_dist.shards.schema import LLP_CLASSES
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.evaluation import evaluate
from avvp_dist.tracking.mlflow_exporter import sync
from avvp_dist.tracking.registry import resolve
from avvp_dist.tracking.run import stage_run

if TYPE_CHECKING:
    from mlflow import MlflowClient


@pytest.fixture
def export(packed: dict[str, ShardSet], tmp_path: Path) -> Path:
    spec = ParserSpec(
        parser=ParserConfig(width=16),
        dims=packed["test"].dims,
        snippets=10,
        classes=list(LLP_CLASSES),
        extractor="simulated",
        manifest="none",
        validated={"val/segment_type_av": 31.5},
    )
    save_model(tmp_path / "model", build_parser(spec).state_dict(), spec)
    return tmp_path / "model"


def registered(export: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Id of a run that registered the export as avvp-parser."""
    monkeypatch.setattr("sys.argv", ["/bin/avvp", "export", "shards=somewhere"])
    config = CalibrateConfig(shards="somewhere")
    config.tracking.enabled = False
    folder = export.parent / "run"
    figure = export.parent / "curves.png"
    matplotlib.image.imsave(figure, np.zeros((300, 2000)))
    with stage_run("export", folder, config, {}, {"/train": "f" * 64}) as run:
        run.log(1, **{"val/segment_type_av": 31.5})
        run.figure(figure)
        run.register("avvp-parser", export, {})
    return sync(folder)


def test_mlflow_loads_the_candidate_and_its_pages_lead_to_one_another(
    export: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    run_id = registered(export, monkeypatch)
    loaded: Any = mlflow.pyfunc.load_model("models:/avvp-parser@candidate")
    assert loaded.predict(loaded.input_example)[0]["id"] == "clip"

    run = client.get_run(run_id)
    version = client.get_model_version_by_alias("avvp-parser", "candidate")
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (model.source_run_id, model.status) == (run_id, "READY")
    assert loaded.metadata.model_id == model.model_id == version.tags["logged_model"]
    assert model.tags["mlflow.modelVersions"] == '[{"name": "avvp-parser", "version": "1"}]'
    assert version.description == model.tags["mlflow.note.content"]
    picture = "![curves.png](get-artifact?path=figures%2Fsmall%2Fcurves.png"
    for text in (version.description, run.data.tags["mlflow.note.content"]):
        assert picture in text and "val/segment_type_av" in text and "`train`" in text
    small = client.download_artifacts(run_id, "figures/small/curves.png", str(export.parent))
    assert matplotlib.image.imread(small).shape[:2] == (129, 860)
    assert client.get_registered_model("avvp-parser").description.startswith("Audio-visual video")
    assert run.data.tags["mlflow.source.name"] == "avvp export"
    assert run.data.tags["command"] == "avvp export shards=somewhere"


def test_an_export_of_an_older_format_is_registered_as_it_is(
    export: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = export / "config.yaml"
    config.write_text(config.read_text().replace("avvp-model-2", "avvp-model-1"))
    registered(export, monkeypatch)
    version = client.get_model_version_by_alias("avvp-parser", "candidate")
    stored = Path(version.source.removeprefix("file://"))
    assert sorted(path.name for path in stored.iterdir()) == sorted(
        path.name for path in export.iterdir()
    )


def test_descriptions_that_people_wrote_stay(
    export: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_registered_model("avvp-parser", description="Ours")
    client.create_experiment("avvp-export", tags={"mlflow.note.content": "Ours too"})
    registered(export, monkeypatch)
    experiment = client.get_experiment_by_name("avvp-export")
    assert client.get_registered_model("avvp-parser").description == "Ours"
    assert experiment is not None and experiment.tags["mlflow.note.content"] == "Ours too"


def test_a_version_of_an_older_release_is_evaluated_as_before(
    export: Path,
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    packed: dict[str, ShardSet],
    features: Path,
) -> None:
    run_id = registered(export, monkeypatch)
    client.log_artifacts(run_id, str(export), "model-older")
    source = f"{client.get_run(run_id).info.artifact_uri}/model-older"
    older = {"digest": folder_digest(export)}
    client.create_model_version("avvp-parser", source, run_id, tags=older)
    config = EvaluateConfig(
        parser="models:/avvp-parser/2",
        shards=str(packed["test"].folder),
        annotations=str(features),
        out=str(export.parent / "scores"),
        tracking=TrackingConfig(enabled=False),
    )
    assert evaluate(config).keys() >= {"segment_audio", "event_event_av"}
    both = [resolve(f"models:/avvp-parser/{n}", export.parent / f"into{n}") for n in (1, 2)]
    assert {folder_digest(model.folder) for model in both} == {folder_digest(export)}
    assert [model.run for model in both] == [run_id, run_id]
