"""Pretraining with every objective at once, on two ranks: planned, logged, exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tracking.records import RegisterRecord, read_records, read_series

pytestmark = pytest.mark.launch

WEIGHTS = {"grounding": 2.0, "masked": 0.5, "matching": 0.25}


def test_every_objective_is_planned_and_logged_and_only_the_encoder_is_exported(
    grounded: ShardSet, fork_ranks: Any, tmp_path: Path
) -> None:
    keys = [f"data.shards={grounded.folder}", "encoder.size=tiny", "trainer.batch_size=16"]
    keys += ["trainer.max_steps=3"]
    keys += [f"objective.{name}={weight:g}" for name, weight in WEIGHTS.items()]
    keys += ["trainer.log_every=1", "tracking.enabled=false", "tracking.figures=false"]

    out = tmp_path / "run"

    def run(ranks: int, *more: str) -> str:
        words = ("launch/pretrain.py", *more, f"trainer.out={out}", *keys)
        process = fork_ranks(*words, ranks=ranks)
        printed, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        return str(printed)

    plan = run(1, "--dry-run", "--ranks=2")
    assert "2 x grounding + 0.5 x masked + 0.25 x matching\n" in plan
    run(2)
    series = read_series(out)
    for step, loss in series["train/loss"].items():
        parts = [weight * series[f"train/{name}"][step] for name, weight in WEIGHTS.items()]
        assert loss == pytest.approx(sum(parts), rel=1e-5)
    assert series["train/masked_chance"][3] > 1 and 0 <= series["train/matching_left_out"][3] < 1
    exported = load_file(out / "model" / "model.safetensors")
    assert not [name for name in exported if "head" in name]
    (record,) = (r for r, _ in read_records(out) if isinstance(r, RegisterRecord))
    assert record.aliases == ["candidate", "multi-masked-matching"]
