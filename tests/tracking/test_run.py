"""Runs in MLflow: in an SQLite store, without a server, and with one that comes and goes."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from avvp_dist.config import CalibrateConfig
from avvp_dist.tracking import run as tracked
from avvp_dist.tracking.mlflow_exporter import MlflowExporter, sync
from avvp_dist.tracking.records import read_series
from avvp_dist.tracking.registry import resolve
from avvp_dist.tracking.run import Run, stage_run
from tests.tracking.servers import Server, free_port, wait_for

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = pytest.mark.launch


def sent(client: MlflowClient, experiment: str) -> list[Any]:
    """The runs of an experiment, oldest first."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id], order_by=["start_time"]))


def points(client: MlflowClient, run_id: str, metric: str = "loss") -> list[tuple[int, float]]:
    """Every point of a metric that MLflow holds, doubled ones too."""
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, metric))


def config(**keys: Any) -> CalibrateConfig:
    return CalibrateConfig(shards="somewhere", **keys)


def test_a_stage_shows_up_whole(client: MlflowClient, tmp_path: Path) -> None:
    picture, note = tmp_path / "curve.png", tmp_path / "note.txt"
    picture.write_bytes(b"picture")
    note.write_text("note")
    tags, inputs = {"manifest": "abc", "grounding": "or-1"}, {"/data/train": "f" * 64}
    with stage_run("calibrate", tmp_path / "my-run", config(seed=3), tags, inputs) as run:
        for step in range(250):  # more than one batch
            run.log(step, loss=1 / (step + 1), wrong=float("nan"))
        run.figure(picture)
        run.artifact(note)
    (found,) = sent(client, "avvp-calibrate")
    assert (found.info.run_name, found.info.status) == ("my-run", "FINISHED")
    assert points(client, found.info.run_id) == [(s, 1 / (s + 1)) for s in range(250)]
    assert "wrong" not in found.data.metrics
    assert found.data.params["seed"] == "3"
    assert found.data.params["tracking.enabled"] == "True"
    assert {name: found.data.tags[name] for name in tags} == tags
    assert found.data.tags["folder"] == str(tmp_path / "my-run")
    (dataset,) = (each.dataset for each in found.inputs.dataset_inputs)
    assert (dataset.name, dataset.digest) == ("train", "f" * 36)
    names = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert names >= {"figures", "note.txt", "config.yaml"}
    (figure,) = client.list_artifacts(found.info.run_id, "figures")
    assert figure.path == "figures/curve.png"


def test_a_stage_that_raises_has_failed(client: MlflowClient, tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        stage_run("calibrate", tmp_path / "run", config(), {}) as run,
    ):
        run.log(0, loss=1 / 0)
    (found,) = sent(client, "avvp-calibrate")
    assert found.info.status == "FAILED"


def test_a_registered_model_is_a_candidate_to_download(
    client: MlflowClient, tmp_path: Path
) -> None:
    for number in (1, 2):
        export = tmp_path / f"model{number}"
        export.mkdir()
        (export / "model.safetensors").write_bytes(b"weights %d" % number)
        with stage_run("pretrain", tmp_path / f"run{number}", config(), {}) as run:
            run.register("avvp-encoder", export, {"objective": "multi"})
    newest = client.get_model_version_by_alias("avvp-encoder", "candidate")
    assert (str(newest.version), newest.tags["objective"]) == ("2", "multi")
    assert newest.run_id == sent(client, "avvp-pretrain")[-1].info.run_id
    for name, number in (("@candidate", 2), ("/1", 1)):
        folder, version, made_by = resolve(
            f"models:/avvp-encoder{name}", tmp_path / f"into{number}"
        )
        assert version == f"avvp-encoder/{number}"
        assert made_by == sent(client, "avvp-pretrain")[number - 1].info.run_id
        assert (folder / "model.safetensors").read_bytes() == b"weights %d" % number


def test_a_model_has_the_aliases_it_was_registered_with(
    client: MlflowClient, tmp_path: Path
) -> None:
    for number, objective in enumerate(("uni", "cross"), 1):
        export = tmp_path / f"model{number}"
        export.mkdir()
        (export / "model.safetensors").write_bytes(objective.encode())
        with stage_run("pretrain", tmp_path / f"run{number}", config(), {}) as run:
            run.register("avvp-encoder", export, {}, ("candidate", objective))
    expected = {"uni": b"uni", "cross": b"cross", "candidate": b"cross"}
    for alias, weights in expected.items():
        folder, *_ = resolve(f"models:/avvp-encoder@{alias}", tmp_path / alias)
        assert (folder / "model.safetensors").read_bytes() == weights
    assert set(client.get_registered_model("avvp-encoder").aliases) == set(expected)


def test_a_part_is_nested_in_its_whole(client: MlflowClient, tmp_path: Path) -> None:
    with stage_run("tables", tmp_path / "whole", config(), {}) as run:
        run.log(0, loss=1.0)
    part = config()
    part.tracking.parent = str(tmp_path / "whole")
    with stage_run("finetune", tmp_path / "part", part, {}) as run:
        run.log(0, loss=2.0)
    (whole,), (nested,) = sent(client, "avvp-tables"), sent(client, "avvp-finetune")
    assert nested.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert "mlflow.parentRunId" not in whole.data.tags
    assert points(client, nested.info.run_id) == [(0, 2.0)]


def test_a_part_whose_whole_was_not_sent_goes_on(
    client: MlflowClient,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracked, "_SECONDS_OF_PATIENCE", 0.5)
    quiet, part = config(), config()
    quiet.tracking.enabled = False
    part.tracking.parent = str(tmp_path / "whole")
    with stage_run("tables", tmp_path / "whole", quiet, {}):
        pass
    with stage_run("finetune", tmp_path / "part", part, {}) as run:
        run.log(0, loss=2.0)
    hint = f"send them with: avvp sync {tmp_path / 'part'}"
    assert hint in capfd.readouterr().err
    assert read_series(tmp_path / "part") == {"loss": {0: 2.0}}
    for folder in (tmp_path / "whole", tmp_path / "part"):
        MlflowExporter(folder).flush()
    (whole,), (nested,) = sent(client, "avvp-tables"), sent(client, "avvp-finetune")
    assert nested.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert points(client, nested.info.run_id) == [(0, 2.0)]


def test_a_version_keeps_its_weights_when_its_run_goes_on(
    client: MlflowClient, tmp_path: Path
) -> None:
    export = tmp_path / "model"
    export.mkdir()
    for weights in (b"first", b"second", b"second"):
        (export / "model.safetensors").write_bytes(weights)
        run = Run("pretrain", tmp_path / "run", config(), {}, resume=True)
        run.register("avvp-encoder", export, {})
        run.close()
    assert len(client.search_model_versions("name='avvp-encoder'")) == 2
    for version, weights in ((1, b"first"), (2, b"second")):
        folder, *_ = resolve(f"models:/avvp-encoder/{version}", tmp_path / f"into{version}")
        assert (folder / "model.safetensors").read_bytes() == weights


def test_a_resumed_run_goes_on_without_doubled_points(client: MlflowClient, tmp_path: Path) -> None:
    for steps, seed in ((range(5), 0), (range(3, 8), 1)):
        run = Run("pretrain", tmp_path / "run", config(seed=seed), {}, resume=True)
        for step in steps:
            run.log(step, loss=10 * seed + step)
        run.close()
    (found,) = sent(client, "avvp-pretrain")
    expected = [(step, float(step)) for step in range(5)] + [(5, 15.0), (6, 16.0), (7, 17.0)]
    assert points(client, found.info.run_id) == expected
    assert found.info.status == "FINISHED"
    assert found.data.params["seed"] == "0"
    assert found.data.tags["resume.2.seed"] == "1"
    assert read_series(tmp_path / "run")["loss"][4] == 14.0


def test_a_new_run_in_an_old_folder_is_a_new_run(client: MlflowClient, tmp_path: Path) -> None:
    for _ in range(2):
        with stage_run("pretrain", tmp_path / "run", config(), {}) as run:
            run.log(0, loss=1.0)
    runs = sent(client, "avvp-pretrain")
    assert [points(client, run.info.run_id) for run in runs] == [[(0, 1.0)]] * 2


def test_other_ranks_and_disabled_tracking_send_nothing(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    run = Run("pretrain", tmp_path / "rank1", config(), {}, active=False)
    run.log(0, loss=1.0)
    run.artifact(tmp_path / "none")
    run.close()
    assert not (tmp_path / "rank1").exists()
    quiet = config()
    quiet.tracking.enabled = False
    with stage_run("pretrain", tmp_path / "quiet", quiet, {}) as run:
        run.log(0, loss=1.0)
    assert read_series(tmp_path / "quiet") == {"loss": {0: 1.0}}
    assert client.get_experiment_by_name("avvp-pretrain") is None


# Without a server.

STAGE = """
import sys
from pathlib import Path
from avvp_dist.config import CalibrateConfig
from avvp_dist.tracking.run import stage_run
folder = Path(sys.argv[1])
with stage_run("calibrate", folder, CalibrateConfig(), {"manifest": "abc"}) as run:
    for step in range(3):
        run.log(step, loss=step)
    (folder / "note.txt").write_text("note")
    run.artifact(folder / "note.txt")
print("the stage is done")
"""


def test_a_dead_server_costs_two_lines_and_is_made_up_for(
    client: MlflowClient, root: Path, tmp_path: Path
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    folder = tmp_path / "run"
    stage = subprocess.run(
        [sys.executable, "-c", STAGE, str(folder)],
        env={**os.environ, "MLFLOW_TRACKING_URI": dead},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert stage.stdout == "the stage is done\n"
    warning, hint = stage.stderr.splitlines()
    assert warning.startswith(f"MLflow: {dead} does not answer (")
    assert warning.endswith(f"; the run goes on and keeps its records in {folder}")
    assert hint.endswith(f"send them with: avvp sync {folder}")
    sync = subprocess.run(
        [sys.executable, str(root / "tools" / "sync_mlflow.py"), str(folder)],
        env={**os.environ, "MLFLOW_TRACKING_URI": client.tracking_uri},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (found,) = sent(client, "avvp-calibrate")
    assert sync.stdout == f"{folder}: all sent, run {found.info.run_id}\n"
    assert points(client, found.info.run_id) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert (found.info.status, found.data.tags["manifest"]) == ("FINISHED", "abc")


def test_a_deleted_experiment_is_no_dead_server(
    client: MlflowClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tracked, "_SECONDS_OF_PATIENCE", 0.0)
    number = client.create_experiment("avvp-calibrate")
    client.delete_experiment(number)
    with stage_run("calibrate", tmp_path / "run", CalibrateConfig(), {}) as run:
        run.log(0, loss=1.0)
    (warning, *_) = capfd.readouterr().err.splitlines()
    assert warning.startswith("MLflow: the experiment avvp-calibrate of sqlite:///")
    assert f"was deleted. Restore it: mlflow experiments restore -x {number}; the run" in warning
    client.restore_experiment(number)
    sync(tmp_path / "run")
    assert len(sent(client, "avvp-calibrate")) == 1


def test_the_store_lies_in_the_working_folder_whatever_its_name(
    empty_store: Path, root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a b%20c?d#e"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    kept = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", STAGE, "run"]
    subprocess.run(command, cwd=folder, env={**kept, "PYTHONPATH": str(root)}, check=True)
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        assert database.execute("select count(*) from runs").fetchone() == (1,)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert len(list((folder / "mlartifacts").rglob("note.txt"))) == 1


# With a server of its own.


def test_a_server_may_come_and_go(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(tracked, "_SECONDS_BETWEEN_FLUSHES", 0.2)
    run, state = Run("pretrain", tmp_path / "run", config(), {}), tmp_path / "run" / "mlflow.json"
    run.log(0, loss=0.0)
    wait_for(lambda: state.exists() and '"loss": 0' in state.read_text(), 60)
    server.kill()
    run.log(1, loss=1.0)
    wait_for(lambda: "does not answer" in capfd.readouterr().err, 60)
    run.log(2, loss=2.0)
    server.start()
    run.log(3, loss=3.0)
    note = tmp_path / "note.txt"
    note.write_text("note")
    run.artifact(note)
    run.close()
    client = MlflowClient(server.uri, server.uri)
    (found,) = sent(client, "avvp-pretrain")
    assert points(client, found.info.run_id) == [(step, float(step)) for step in range(4)]
    assert found.info.status == "FINISHED"
    assert "not every record was sent" not in capfd.readouterr().err
    assert list((tmp_path / "artifacts").rglob("note.txt")) != []


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["/bin/avvp", "pack", "out=a b"], "avvp pack 'out=a b'"),
        (["/x/avvp_dist/__main__.py", "--local_rank=0", "pack", "out=a"], "avvp pack out=a"),
        (["tools/pack.py", "--local_rank=1", "out=a"], "avvp pack out=a"),
        (["/bin/avvp", "demo", "out=a"], "avvp pack"),
        (["pytest"], "avvp pack"),
        (["avvp", "pack", "source=http://me:secret@host/x"], "avvp pack source=http://host/x"),
    ],
)
def test_the_command_of_a_stage_is_what_a_user_types(words: list[str], command: str) -> None:
    assert tracked.stage_command("pack", words) == command
