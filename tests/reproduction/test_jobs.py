"""Jobs: what is done stays done, what changed is made anew, a failure stops its own job only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from avvp_dist.commit import write_json
from avvp_dist.config import EvaluateConfig, ParserConfig, TrackingConfig
from avvp_dist.errors import CheckpointError, ClusterError
from avvp_dist.models.export import build_parser, save_model
from avvp_dist.models.specification import ParserSpec
from avvp_dist.reproduction import jobs
from avvp_dist.reproduction.jobs import Command, Job, run_job, run_jobs, run_missing
from avvp_dist.shards.schema import LLP_CLASSES
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tracking import run as tracked
from avvp_dist.tracking.mlflow_exporter import ExportState
from avvp_dist.tracking.records import RECORDS
from avvp_dist.tracking.run import Run

if TYPE_CHECKING:
    from mlflow import MlflowClient

QUIET = TrackingConfig(enabled=False)
NAMED = TrackingConfig(name="one")


# One job, with stages that only leave their mark.


def mark(command: Command[Any]) -> None:
    """Leave a line for each call instead of running a stage."""
    with (command.out.parent / "calls").open("a") as calls:
        calls.write(f"{command.out.name} ")
    command.out.mkdir(exist_ok=True)
    with (command.out / "made").open("a") as made:
        made.write(command.config.clip)
    if command.config.clip == "fail":
        raise CheckpointError("no parser")
    value = 100.0 if command.config.clip == "better" else 1.0
    write_json(command.out / "scores.json", {"scores": {"segment_audio": value}})
    print(f"this is {command.out.name}")


@pytest.fixture(autouse=True)
def marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mark` instead of real stages, but for tests on Ray, whose workers do not see it."""
    if request.node.get_closest_marker("launch") is None:
        monkeypatch.setattr(jobs, "_call", mark)


def job(out: Path, *clips: str, inputs: str = "data", **changes: Any) -> Job:
    """A job whose commands differ in a key of their config."""
    folder = out / "rows" / "one"
    commands = tuple(
        Command(f"{n}", "evaluate", EvaluateConfig(clip=c, tracking=QUIET), folder / f"stage{n}")
        for n, c in enumerate(clips)
    )
    return replace(Job("one", folder, inputs, commands), **changes)


def calls(out: Path) -> list[str]:
    """The stages called since this was last asked."""
    path = out / "rows" / "one" / "calls"
    found = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def made(out: Path, number: int) -> str:
    return (out / "rows" / "one" / f"stage{number}" / "made").read_text()


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    one = job(tmp_path, "a", "b", "c")
    assert one.finished == 0
    assert run_job(one) == one.folder
    assert one.finished == 3
    assert calls(tmp_path) == ["stage0", "stage1", "stage2"]
    run_job(one)
    assert calls(tmp_path) == []
    assert run_jobs([one], cpus=1, gpus=0) == {}


def test_a_changed_stage_is_made_anew_with_all_after_it(tmp_path: Path) -> None:
    run_job(job(tmp_path, "a", "b", "c"))
    calls(tmp_path)
    changed = job(tmp_path, "a", "x", "c")
    assert changed.finished == 1
    run_job(changed)
    assert calls(tmp_path) == ["stage1", "stage2"]
    assert [made(tmp_path, number) for number in range(3)] == ["a", "x", "c"]
    assert job(tmp_path, "a", "b", "c").finished == 1


@pytest.mark.parametrize("changes", [{"inputs": "other data"}, {"needs": "another encoder"}])
def test_what_is_read_from_elsewhere_counts_too(tmp_path: Path, changes: dict[str, str]) -> None:
    def standing_on(encoder: str, inputs: str = "data") -> Job:
        return job(tmp_path, "a", inputs=inputs, needs=job(tmp_path / "encoders", encoder))

    run_job(standing_on("encoder"))
    assert standing_on("encoder").finished == 1
    changed = standing_on(changes.get("needs", "encoder"), changes.get("inputs", "data"))
    assert changed.finished == 0
    run_job(changed)
    assert calls(tmp_path) == ["stage0"] * 2


def test_where_it_is_tracked_does_not_matter(tmp_path: Path) -> None:
    one = job(tmp_path, "a")
    run_job(one)
    other = replace(
        one.commands[0], config=EvaluateConfig(clip="a", tracking=TrackingConfig(name="x"))
    )
    assert replace(one, commands=(other,)).is_finished


def test_a_cut_off_stage_goes_on_in_its_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(CheckpointError):
            run_job(job(tmp_path, "a", "fail", "c"))
    assert calls(tmp_path) == ["stage0", "stage1", "stage1"]
    assert made(tmp_path, 1) == "failfail"
    assert job(tmp_path, "a", "fail", "c").finished == 1


def test_a_stage_cut_off_under_another_config_leaves_nothing(tmp_path: Path) -> None:
    run_job(job(tmp_path, "a", "b", "c"))
    with pytest.raises(CheckpointError):
        run_job(job(tmp_path, "a", "fail", "c"))
    assert not (tmp_path / "rows" / "one" / "stage2").exists()
    run_job(job(tmp_path, "a", "x", "c"))
    assert [made(tmp_path, number) for number in range(3)] == ["a", "x", "c"]


def test_a_change_of_what_comes_later_lets_a_cut_off_stage_go_on(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        run_job(job(tmp_path, "a", "fail", "c"))
    with pytest.raises(CheckpointError):
        run_job(job(tmp_path, "a", "fail", "x"))
    assert made(tmp_path, 1) == "failfail"


def test_going_back_to_a_config_makes_anew_what_another_one_removed(tmp_path: Path) -> None:
    run_job(job(tmp_path, "a", "b", "c"))
    with pytest.raises(CheckpointError):
        run_job(job(tmp_path, "a", "fail", "c"))
    run_job(job(tmp_path, "a", "b"))
    assert job(tmp_path, "a", "b", "c").finished == 2
    run_job(job(tmp_path, "a", "b", "c"))
    assert [made(tmp_path, number) for number in range(3)] == ["a", "b", "c"]


def test_a_file_can_be_what_a_command_makes(tmp_path: Path) -> None:
    def keep(command: Command[Any]) -> None:
        with command.out.open("a") as file:
            file.write(command.config.clip)

    for clip in "ab":
        one = job(tmp_path, clip)
        (command,) = one.commands
        run_missing(replace(one, commands=(replace(command, out=tmp_path / "made"),)), keep)
        assert (tmp_path / "made").read_text() == clip


def test_the_log_holds_what_the_stages_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job(job(tmp_path, "a", "b"))
    log = (tmp_path / "rows" / "one" / "log.txt").read_text()
    assert log == "this is stage0\nthis is stage1\n"
    assert "stage" not in capsys.readouterr().out


def test_the_log_says_why_a_stage_failed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        run_job(job(tmp_path, "a", "fail"))
    log = (tmp_path / "rows" / "one" / "log.txt").read_text()
    assert "Traceback" in log and log.endswith("CheckpointError: no parser\n")


# What MLflow is told.


def store(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


def runs_of(uri: str) -> dict[str, Any]:
    """The runs of the tables' experiment by name, which must be one run each."""
    client = store(uri)
    found = client.get_experiment_by_name("avvp-tables")
    runs = client.search_runs([found.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def test_mlflow_has_the_scores_of_the_newest_parser(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    out = tmp_path / "tables"
    with Run("tables", out, EvaluateConfig(), {}):
        pass
    for clip in ("a", "better"):
        one = job(out, clip)
        command = replace(one.commands[0], config=EvaluateConfig(clip=clip))
        run_job(replace(one, commands=(command,)))
    runs = runs_of(uri)
    assert set(runs) == {"tables", "one"}
    assert runs["one"].data.tags["mlflow.parentRunId"] == runs["tables"].info.run_id
    assert runs["one"].info.status == "FINISHED"
    scores = json.loads((one.commands[0].out / "scores.json").read_text())["scores"]
    assert runs["one"].data.metrics["segment_audio"] == scores["segment_audio"] == 100


@pytest.mark.parametrize("cut_off", ["before it was sent", "before it ended"])
def test_a_finished_job_that_mlflow_does_not_know_is_recorded_later(
    cut_off: str, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path)}"
    dead = cut_off == "before it was sent"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9" if dead else uri)
    monkeypatch.setattr(tracked, "_SECONDS_OF_PATIENCE", 0.0)
    one = job(tmp_path / "tables", "a")
    one = replace(one, commands=(replace(one.commands[0], config=EvaluateConfig(clip="a")),))
    with monkeypatch.context() as alone:  # there is no run of all jobs to nest it under
        alone.setattr(jobs, "_tracked", lambda job: replace(EvaluateConfig(), tracking=NAMED))
        run_job(one)
        assert one.is_finished and one.is_recorded != dead
        records = one.folder / RECORDS
        if not dead:
            lines = records.read_text().splitlines(keepends=True)
            records.write_text("".join(lines[:-1]))
            state = ExportState.load(one.folder)
            replace(state, offset=records.stat().st_size).save(one.folder)
            store(uri).update_run(state.run_id, "RUNNING")
        assert not one.is_recorded
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        run_job(one)
        assert one.is_recorded
    assert calls(tmp_path / "tables") == ["stage0"]
    assert runs_of(uri)["one"].info.status == "FINISHED"


# Several jobs on Ray, with real stages: a parser is scored.


def parser(folder: Path, shards: ShardSet) -> Path:
    """An exported parser with fresh weights."""
    spec = ParserSpec(
        parser=ParserConfig(width=16),
        dims=shards.dims,
        snippets=shards.snippets,
        classes=list(LLP_CLASSES),
        extractor="simulated",
        manifest=shards.digest,
    )
    save_model(folder, build_parser(spec).state_dict(), spec)
    return folder


def scoring(
    name: str, out: Path, parsers: Iterable[Path], test: ShardSet, features: Path, **more: Any
) -> Job:
    """A job that scores parsers in turn."""
    folder, data = out / "rows" / name, {"shards": str(test.folder), "annotations": str(features)}
    commands = []
    for number, one in enumerate(parsers):
        scores = folder / f"scores{number}"
        config = EvaluateConfig(parser=str(one), out=str(scores), tracking=QUIET, **data)
        commands.append(Command(scores.name, "evaluate", config, scores))
    return Job(name, folder, "", tuple(commands), **more)


@pytest.mark.launch
def test_more_cores_than_any_node_has_are_refused(tmp_path: Path, one_ray: None) -> None:
    with pytest.raises(ClusterError, match=r"a job needs 1000 cores .*host has 2 and 0"):
        run_jobs([job(tmp_path, "a")], cpus=1000, gpus=0)


@pytest.mark.launch
def test_a_failure_stops_its_own_job_and_those_that_need_it(
    packed: dict[str, ShardSet], features: Path, tmp_path: Path, one_ray: None
) -> None:
    good, missing = parser(tmp_path / "parser", packed["test"]), tmp_path / "missing"
    data = (packed["test"], features)
    fails = scoring("fails", tmp_path, [good, missing], *data)
    needs = scoring("needs", tmp_path, [good], *data, needs=fails)
    works = scoring("works", tmp_path, [good], *data)
    failed = run_jobs([fails, needs, works], cpus=1, gpus=0, fresh=False)
    assert set(failed) == {"fails", "needs"}
    for error in failed.values():
        assert isinstance(error, CheckpointError)
        assert str(error) == f"{missing} does not exist. Give an exported model"
    assert [one.finished for one in (fails, needs, works)] == [1, 0, 1]
    assert "segment" in (works.folder / "log.txt").read_text()
    scores = [one.commands[0].out / "scores.json" for one in (fails, works)]
    times = [path.stat().st_mtime_ns for path in scores]

    parser(missing, packed["test"])
    for one in (fails, needs, works):
        run_job(one)
    assert [one.finished for one in (fails, needs, works)] == [2, 1, 1]
    assert [path.stat().st_mtime_ns for path in scores] == times
