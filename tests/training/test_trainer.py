"""The train loop: accumulation, divergence, and a tracking server that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from avvp_dist.data.shards import ShardSet
from avvp_dist.tracking.records import read_series

pytestmark = pytest.mark.launch

KEYS = ("encoder.size=tiny", "trainer.max_steps=3", "trainer.batch_size=16", "trainer.log_every=1")


def start(launch: Any, shards: ShardSet, out: Path, *keys: str, **options: Any) -> Any:
    data = (f"data.shards={shards.folder}", f"trainer.out={out}")
    process = launch("launch/pretrain.py", *data, *KEYS, *keys, **options)
    _, err = process.communicate(timeout=240)
    return process.returncode, err


def test_a_dead_mlflow_server_costs_one_line_and_no_step(
    grounded: ShardSet, launch: Any, tmp_path: Path
) -> None:
    code, err = start(launch, grounded, tmp_path, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert code == 0
    lines = [line for line in err.splitlines() if line.startswith("MLflow:")]
    assert len(lines) == 2, err
    assert "does not answer, the run goes on" in lines[0]
    assert f"python tools/sync_mlflow.py {tmp_path}" in lines[1]
    assert list(read_series(tmp_path)["loss"]) == [1, 2, 3]


def test_ranks_micro_batches_and_zero_stages_train_alike(
    grounded: ShardSet, launch: Any, tmp_path: Path
) -> None:
    variants: dict[str, tuple[int, tuple[str, ...]]] = {
        "two ranks": (2, ()),
        "ZeRO 2": (2, ("trainer.zero_stage=2",)),
    }
    losses = []
    for name, (ranks, keys) in variants.items():
        fixed = ("tracking.enabled=false", "encoder.dropout=0", "objective.other_clips=0", *keys)
        code, err = start(launch, grounded, tmp_path / name, *fixed, ranks=ranks)
        assert code == 0, err
        losses.append(list(read_series(tmp_path / name)["loss"].values()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_with_its_step(
    grounded: ShardSet, launch: Any, tmp_path: Path
) -> None:
    keys = ("optimizer.lr=1e25", "optimizer.clip=0", "optimizer.warmup=0", "tracking.enabled=false")
    code, err = start(launch, grounded, tmp_path, *keys, ranks=1)
    assert code == 6
    assert "error: the loss of step" in err and "is not finite" in err
