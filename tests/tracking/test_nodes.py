"""System metrics: sampled by a thread of each node's first rank, sent by rank 0 alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from avvp_dist.config import CalibrateConfig
from avvp_dist.tracking.mlflow_exporter import sync
from avvp_dist.tracking.nodes import NodeMonitor, node_name
from avvp_dist.tracking.records import NodeRecord, read_lines
from avvp_dist.tracking.run import Run
from tests.tracking.servers import wait_for

if TYPE_CHECKING:
    from mlflow import MlflowClient

CPU = "cpu_utilization_percentage"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def samples(folder: Path, node: str) -> list[NodeRecord]:
    records = (record for record, _ in read_lines(folder / "nodes" / f"{node}.jsonl"))
    return [record for record in records if isinstance(record, NodeRecord)]


def config(enabled: bool = True) -> CalibrateConfig:
    made = CalibrateConfig(shards="somewhere")
    made.tracking.enabled = enabled
    return made


def test_a_node_is_sampled_until_the_end(tmp_path: Path) -> None:
    monitor = NodeMonitor(tmp_path)
    wait_for(lambda: len(samples(tmp_path, node_name())) >= 2, 20)
    monitor.close()
    taken = samples(tmp_path, node_name())
    assert len(taken) >= 3
    for record in taken:
        values = record.values
        assert 0 <= values[CPU] <= 100 and 0 < values["system_memory_usage_percentage"] < 100
        assert values["system_memory_usage_megabytes"] > 10
        assert values["disk_available_megabytes"] >= 0


def test_what_cannot_be_sampled_is_one_line_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "often")
    NodeMonitor(tmp_path).close()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"no system metrics of {node_name()}: ") and "often" in line


def test_the_first_rank_of_every_node_samples_and_rank_0_sends(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = []
    for number, (node, local) in enumerate([("a", "0"), ("a", "1"), ("b/b", "0"), ("b/b", "1")]):
        monkeypatch.setenv("LOCAL_RANK", local)
        monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_NODE_ID", node)
        ranks.append(Run("nodes", tmp_path / "run", config(), {}, active=number == 0))
        if local == "0":
            name = node.replace("/", "-")
            wait_for(lambda name=name: samples(tmp_path / "run", name) != [], 20)
    for rank in reversed(ranks):
        rank.close()
    files = {path.name for path in (tmp_path / "run" / "nodes").iterdir()}
    assert files == {"a.jsonl", "b-b.jsonl"}
    run_id = sync(tmp_path / "run")
    for node in ("a", "b-b"):
        points = client.get_metric_history(run_id, f"system/{node}/{CPU}")
        taken = samples(tmp_path / "run", node)
        assert sorted((p.timestamp, p.value) for p in points) == sorted(
            (sample.time, sample.values[CPU]) for sample in taken
        )
        assert {p.step for p in points} <= set(range(60))  # seconds of the run
    (run,) = client.search_runs([client.get_experiment_by_name("avvp-nodes").experiment_id])
    assert run.info.run_id == run_id


def test_samples_belong_to_the_run_in_whose_time_they_were_taken(
    client: MlflowClient, tmp_path: Path
) -> None:
    """Even if both runs of a folder, one of them with two attempts, are sent at once."""
    (tmp_path / "nodes").mkdir()
    base = config(enabled=False)
    times = {"one": 1_000_000, "two": 2_000_000}
    record = {"kind": "run", "experiment": "avvp-timed", "name": "run", "tags": {}, "inputs": {}}
    record |= {"config": {"seed": base.seed}, "parent": ""}
    runs = [("one", times["one"]), ("one", times["one"] + 60_000), ("two", times["two"])]
    lines = [json.dumps({**record, "key": key, "time": time}) + "\n" for key, time in runs]
    (tmp_path / "records.jsonl").write_text("".join(lines))
    taken = [1_010_000, 1_070_000, 2_010_000]
    node = [json.dumps({"kind": "node", "time": t, "values": {CPU: t / 1e6}}) + "\n" for t in taken]
    (tmp_path / "nodes" / "a.jsonl").write_text("".join(node))
    second = sync(tmp_path)
    (tmp_path / "nodes" / "a.jsonl").write_text("".join(node) + node[-1].replace("2010", "2020"))
    assert sync(tmp_path) == second
    experiment = client.get_experiment_by_name("avvp-timed")
    assert experiment is not None
    (first,) = (
        run.info.run_id
        for run in client.search_runs([experiment.experiment_id])
        if run.info.run_id != second
    )
    for run_id, expected in (
        (first, [(1_010_000, 10), (1_070_000, 70)]),
        (second, [(2_010_000, 10), (2_020_000, 20)]),
    ):
        points = client.get_metric_history(run_id, f"system/a/{CPU}")
        assert sorted((p.timestamp, p.step) for p in points) == expected


def test_without_tracking_nothing_is_sampled(tmp_path: Path) -> None:
    Run("nodes", tmp_path / "run", config(enabled=False), {}).close()
    assert not (tmp_path / "run" / "nodes").exists()
