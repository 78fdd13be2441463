"""Counts of a step: messages as the formulas have them, launches as the scaling table assumes."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from avvp_dist.shards.shard_set import ShardSet


@pytest.mark.launch
def test_steps_at_every_stage_and_precision_are_what_the_tables_of_scaling_assume(
    root: Path, grounded: ShardSet, fork_ranks: Any, tmp_path: Path
) -> None:
    (tmp_path / "shards").symlink_to(grounded.folder)
    words = ("--worker", str(tmp_path), "--sizes", "tiny")
    process = fork_ranks("tools/bench/counting.py", *words, ranks=2)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assumed = runpy.run_path(str(root / "tools/bench/scaling.py"))
    counted = json.loads((tmp_path / "counted.json").read_text())
    assert len(counted) == len(assumed["LAUNCHES"])
    for (stage, precision), (fixed, layer) in assumed["LAUNCHES"].items():
        (found,) = counted[f"{stage}:{precision}"]
        counts, layers = found["counts"], found["layers"]
        assert counts["weights"] == pytest.approx(found["weights_planned"], rel=1e-3)
        assert counts["exchange"] == pytest.approx(found["exchange_planned"], rel=1e-3)
        assert counts["launches"] == pytest.approx(fixed + layer * layers, rel=0.02)
        fixed, layer = assumed["SYNCHRONISATIONS"][stage]
        assert counts["synchronisations"] <= fixed + layer * layers
