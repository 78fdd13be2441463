"""A whole training whose server dies and whose ranks are killed: MLflow ends with all of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from avvp_dist.commit import folder_digest
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tracking.mlflow_exporter import sync
from avvp_dist.tracking.nodes import node_name
from avvp_dist.tracking.records import read_lines, read_series
from tests.tracking.servers import Server, wait_for

pytestmark = pytest.mark.launch

STEPS = 40
KEYS = (
    "encoder.size=tiny",
    f"trainer.max_steps={STEPS}",
    "trainer.epochs=1000",
    "trainer.batch_size=16",
    "trainer.log_every=1",
    "trainer.checkpoint_every=10",
    "trainer.resume=auto",
    "data.heldout=0.1",
    "tracking.figures=false",
)
TIMED = {
    "train/clips_per_second",
    "train/tokens_per_second",
    "train/tflops_per_rank",
    "train/mfu",
    "train/data_wait",
    "train/checkpoint_seconds",
}
"""Metrics that differ when a step is repeated after a kill."""


def signal_ranks(process: Any, number: int, first: int = 0) -> None:
    """Send a signal to all ranks from the `first` on."""
    for rank in psutil.Process(process.pid).children()[first:]:
        os.kill(rank.pid, number)


def test_two_ranks_a_dying_server_and_a_kill_make_one_whole_run(
    grounded: ShardSet, fork_ranks: Any, server: Server, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    out = tmp_path / "run"
    keys = (f"data.shards={grounded.folder}", f"trainer.out={out}", *KEYS)
    fast = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.5"}
    first, state = fork_ranks("launch/pretrain.py", *keys, **fast), out / "mlflow.json"
    wait_for(lambda: any((out / "checkpoints").glob("step-*")), 90)
    signal_ranks(first, signal.SIGSTOP, first=1)  # the others wait for it, and send their records
    wait_for(lambda: state.exists() and '"train/loss"' in state.read_text(), 90)
    server.kill()
    stopped = max(read_series(out)["train/loss"])
    signal_ranks(first, signal.SIGCONT, first=1)
    wait_for(lambda: max(read_series(out)["train/loss"]) > stopped + 5, 60)
    signal_ranks(first, signal.SIGKILL)
    first.communicate(timeout=60)
    assert max(read_series(out)["train/loss"]) < STEPS, "it was over before it could be killed"

    second = fork_ranks("launch/pretrain.py", *keys, **fast)
    printed, err = second.communicate(timeout=240)
    assert second.returncode == 0, err
    assert "resumed at step" in printed and "; the run goes on and keeps" in err

    server.start()
    run_id = sync(out)
    assert_whole(MlflowClient(server.uri, server.uri), run_id, out)
    before = state.read_bytes()
    assert (sync(out), state.read_bytes()) == (run_id, before)


def assert_whole(client: Any, run_id: str, out: Path) -> None:
    """The store's one run has each point of each metric once, and its model is a candidate."""
    experiment = client.get_experiment_by_name("avvp-pretrain")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    series = read_series(out)
    assert list(series["train/loss"]) == list(range(1, STEPS + 1))
    for name, points in series.items():
        sent = client.get_metric_history(run_id, name)
        assert sorted(p.step for p in sent) == sorted(points), name
        if name not in TIMED:
            assert {p.step: p.value for p in sent} == points, name
    assert {n for n in run.data.metrics if not n.startswith("system/")} == set(series)
    node = node_name()
    taken = [record for record, _ in read_lines(out / "nodes" / f"{node}.jsonl")]
    sent = client.get_metric_history(run_id, f"system/{node}/cpu_utilization_percentage")
    assert len(taken) == len(sent) > 2
    (version,) = client.search_model_versions("name='avvp-encoder'")
    assert version.run_id == version.tags["parent_run"] == run_id
    assert version.tags["digest"] == folder_digest(out / "model")
    assert float(version.tags["val/auc"]) == pytest.approx(series["val/auc"][STEPS], rel=1e-5)
    aliases = client.get_registered_model("avvp-encoder").aliases
    assert {alias: str(number) for alias, number in aliases.items()} == {
        "candidate": str(version.version),
        "multi": str(version.version),
    }
