"""The exporter: whichever call to MLflow fails, the next flush makes up for it."""

from __future__ import annotations

import json
import shutil
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from avvp_dist.config import CalibrateConfig, TrackingConfig
from avvp_dist.errors import CheckpointError, ConfigError, DataError, StorageError
from avvp_dist.tracking.mlflow_exporter import MlflowExporter, sync
from avvp_dist.tracking.run import Run, stage_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

CALLS = [
    ("create_experiment", 1),
    ("create_run", 1),
    ("log_batch", 1),  # params
    ("log_dict", 1),
    ("log_inputs", 1),
    ("log_batch", 2),  # metrics
    ("log_batch", 3),  # metrics that come after an artifact
    ("log_artifact", 2),
    ("create_logged_model", 1),
    ("log_model_artifacts", 1),
    ("finalize_logged_model", 1),
    ("log_outputs", 1),
    ("create_registered_model", 1),
    ("create_model_version", 1),
    ("set_registered_model_alias", 1),
    ("set_registered_model_alias", 2),
    ("set_terminated", 1),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Records of a finished run with one of everything."""
    export, note = tmp_path / "export", tmp_path / "note.txt"
    export.mkdir()
    (export / "model.safetensors").write_bytes(b"weights")
    note.write_text("note")
    config = CalibrateConfig(shards="somewhere")
    config.tracking.enabled = False
    with stage_run("export", tmp_path / "run", config, {"a": "b"}, {"/train": "f" * 64}) as run:
        run.log(0, loss=3.0)
        run.log(1, loss=2.0)
        run.artifact(note)
        run.log(2, loss=1.0)
        run.register("avvp-export", export, {}, ("candidate", "uni"))
    return tmp_path / "run"


def fail_once(
    monkeypatch: pytest.MonkeyPatch,
    exporter: MlflowExporter,
    method: str,
    number: int,
    reached: bool,
) -> None:
    """Make the `number`-th call of a method fail before or after it reached the store."""
    whole, calls = getattr(exporter._client, method), []

    def torn(*arguments: Any, **keys: Any) -> Any:
        calls.append(method)
        if len(calls) == number:
            if reached:
                whole(*arguments, **keys)
            raise ConnectionError("the server went away")
        return whole(*arguments, **keys)

    monkeypatch.setattr(exporter._client, method, torn)


def assert_all_sent_once(client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("avvp-export")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((p.step, p.value) for p in history) == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert run.data.params["shards"] == "somewhere"
    assert run.data.tags["a"] == "b"
    assert len(run.inputs.dataset_inputs) == 1
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files >= {"config.yaml", "note.txt"}
    (version,) = client.search_model_versions("name='avvp-export'")
    assert version.run_id == run.info.run_id
    for alias in ("candidate", "uni"):
        named = client.get_model_version_by_alias("avvp-export", alias)
        assert named.version == version.version
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize(
    ("method", "number", "again"),
    [
        *((*call, "new exporter") for call in CALLS),
        *((*call, "new exporter, answer lost") for call in CALLS),
        *((*call, "same exporter") for call in CALLS[1::4]),
    ],
)
def test_a_call_that_fails_is_made_up_for(
    folder: Path,
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    number: int,
    again: str,
) -> None:
    exporter = MlflowExporter(folder)
    fail_once(monkeypatch, exporter, method, number, reached="lost" in again)
    with pytest.raises(ConnectionError, match="went away"):
        exporter.flush()
    exporter = exporter if again == "same exporter" else MlflowExporter(folder)
    exporter.flush()
    assert_all_sent_once(client)


def test_records_of_older_versions_are_sent(folder: Path, client: MlflowClient) -> None:
    """They have no parent and no aliases: a model is then the candidate."""
    path = folder / "records.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    old = [{k: v for k, v in r.items() if k not in ("parent", "aliases")} for r in records]
    assert old != records
    path.write_text("".join(json.dumps(record) + "\n" for record in old))
    MlflowExporter(folder).flush()
    (version,) = client.search_model_versions("name='avvp-export'")
    named = client.get_model_version_by_alias("avvp-export", "candidate")
    assert named.version == version.version
    assert list(client.get_registered_model("avvp-export").aliases) == ["candidate"]
    assert "mlflow.parentRunId" not in client.get_run(version.run_id).data.tags


def part_of(parent: Path, folder: Path) -> Path:
    """Records of a run that is a part of another one."""
    config = CalibrateConfig(shards="somewhere")
    config.tracking.enabled, config.tracking.parent = False, str(parent)
    with stage_run("part", folder, config, {}) as run:
        run.log(0, loss=1.0)
    return folder


def test_a_part_is_sent_after_the_run_it_belongs_to(
    folder: Path, client: MlflowClient, tmp_path: Path
) -> None:
    part = part_of(folder, tmp_path / "part")
    before, exporter = (part / "records.jsonl").read_bytes(), MlflowExporter(part)
    for _ in range(2):
        with pytest.raises(Exception, match=str(folder)):
            exporter.flush()
    experiment = client.get_experiment_by_name("avvp-part")
    assert experiment is None or not client.search_runs([experiment.experiment_id])
    assert (part / "records.jsonl").read_bytes() == before
    MlflowExporter(folder).flush()
    exporter.flush()
    experiment = client.get_experiment_by_name("avvp-part")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    parent = json.loads((folder / "mlflow.json").read_text())["run_id"]
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert (run.data.metrics["loss"], run.info.status) == (1.0, "FINISHED")


def test_a_flush_without_new_records_sends_nothing(folder: Path, client: MlflowClient) -> None:
    MlflowExporter(folder).flush()
    before = (folder / "mlflow.json").read_bytes()
    MlflowExporter(folder).flush()
    assert (folder / "mlflow.json").read_bytes() == before
    assert_all_sent_once(client)


def test_points_that_were_sent_before_the_state_was_saved_are_not_doubled(
    folder: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = MlflowExporter(folder)
    whole, offsets = exporter._save_offset, []

    def cut_off(offset: int) -> None:
        offsets.append(offset)
        if len(offsets) == 2:  # after the first metrics
            raise KeyboardInterrupt
        whole(offset)

    monkeypatch.setattr(exporter, "_save_offset", cut_off)
    with pytest.raises(KeyboardInterrupt):
        exporter.flush()
    MlflowExporter(folder).flush()
    assert_all_sent_once(client)


def test_a_part_is_sent_from_any_working_folder(
    folder: Path, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    part = part_of(Path(folder.name), tmp_path / "part")
    MlflowExporter(folder).flush()
    monkeypatch.chdir(Path("/"))
    MlflowExporter(part).flush()
    experiment = client.get_experiment_by_name("avvp-part")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    parent = json.loads((folder / "mlflow.json").read_text())["run_id"]
    assert run.data.tags["mlflow.parentRunId"] == parent


def test_a_part_sent_too_early_is_one_line(
    folder: Path, client: MlflowClient, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"tracking.parent: no records of {folder} were sent yet"):
        MlflowExporter(part_of(folder, tmp_path / "part")).flush()


def test_no_alias_moves_to_files_that_arrived_damaged(
    folder: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = MlflowExporter(folder)
    whole = exporter._client.log_model_artifacts

    def damaged(model_id: str, local: str) -> None:
        whole(model_id, local)
        stored = client.get_logged_model(model_id).artifact_location.removeprefix("file://")
        (Path(stored) / "model.safetensors").write_bytes(b"weightz")

    monkeypatch.setattr(exporter._client, "log_model_artifacts", damaged)
    with pytest.raises(CheckpointError, match=r"avvp-export, just sent: its files are not those"):
        exporter.flush()
    assert client.search_model_versions("name='avvp-export'") == []
    assert client.get_registered_model("avvp-export").aliases == {}
    MlflowExporter(folder).flush()
    assert_all_sent_once(client)


@pytest.mark.parametrize("gone", [False, True])
def test_files_that_were_replaced_before_they_were_sent_are_not_registered(
    folder: Path, client: MlflowClient, gone: bool
) -> None:
    export = folder.parent / "export"
    if gone:
        shutil.rmtree(export)
    else:
        (export / "model.safetensors").write_bytes(b"later weights")
    (folder.parent / "note.txt").unlink()
    run_id = sync(folder)
    run = client.get_run(run_id)
    assert client.search_model_versions("name='avvp-export'") == []
    assert (run.info.status, run.data.metrics["loss"]) == ("FINISHED", 1.0)
    assert run.data.tags["missing.note.txt"] == str(folder.parent / "note.txt")
    assert any(tag.startswith("not_registered.model-") for tag in run.data.tags)


def test_a_version_names_the_run_that_made_it(folder: Path, client: MlflowClient) -> None:
    run_id = sync(folder)
    (version,) = client.search_model_versions("name='avvp-export'")
    assert version.tags["parent_run"] == version.run_id == run_id


def test_a_config_of_any_size_is_whole_and_a_resumed_one_not_different(
    client: MlflowClient, tmp_path: Path
) -> None:
    keys = [(f"key{n}", str, "x" * 7000 if n == 0 else str(n)) for n in range(250)]
    tracking = (
        "tracking",
        TrackingConfig,
        field(default_factory=lambda: TrackingConfig(enabled=False)),
    )
    config = make_dataclass("Config", [*keys, tracking])()
    for _ in range(2):
        Run("large", tmp_path / "run", config, {}, resume=True).close()
    run = client.get_run(sync(tmp_path / "run"))
    params = {name: value for name, value in run.data.params.items() if name.startswith("key")}
    assert len(params) == 250
    assert (params["key0"], params["key249"]) == ("x" * 6000, "249")
    assert not [tag for tag in run.data.tags if tag.startswith("resume.")]


def test_an_outage_while_syncing_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(StorageError, match=r"not every .* http://127.0.0.1:9 does not") as caught:
        sync(folder)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"nowhere holds no records\.jsonl"):
        sync(tmp_path / "nowhere")


def test_records_of_newer_versions_are_skipped_and_damaged_ones_named(
    folder: Path, client: MlflowClient
) -> None:
    path = folder / "records.jsonl"
    lines = path.read_text().splitlines()
    first = json.loads(lines[0])
    lines[0] = json.dumps({**first, "priority": 3})
    newer = json.dumps({"kind": "checkpoint", "time": 1, "step": 2})
    path.write_text("\n".join([*lines[:2], newer, *lines[2:]]) + "\n")
    MlflowExporter(folder).flush()
    assert_all_sent_once(client)
    damaged = '{"kind": "metrics", "time": 1}\n'
    with path.open("a") as file:
        file.write(damaged)
    start = path.stat().st_size - len(damaged)
    with pytest.raises(DataError, match=rf"{path}: the line at byte {start} is no record: .*step"):
        MlflowExporter(folder).flush()
