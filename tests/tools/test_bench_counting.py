"""Counts of a step: messages as the formulas have them, launches as the scaling table assumes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from avvp_dist.shards.shard_set import ShardSet


@pytest.mark.launch
def test_a_step_is_what_the_tables_of_scaling_assume(
    root: Path, grounded: ShardSet, fork_ranks: Any, tmp_path: Path
) -> None:
    (tmp_path / "shards").symlink_to(grounded.folder)
    words = ("--worker", str(tmp_path), "--only", "0:fp32")
    process = fork_ranks("tools/bench/counting.py", *words, ranks=2)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    one, two = json.loads((tmp_path / "counted.json").read_text())["0:fp32"]
    for found in (one, two):
        assert found["counts"]["weights"] == pytest.approx(found["weights_planned"], rel=1e-3)
        assert found["counts"]["exchange"] == pytest.approx(found["exchange_planned"], rel=1e-3)

    assumed = re.search(
        r'\(0, "fp32"\): \((\d+), (\d+)\)', (root / "tools/bench/scaling.py").read_text()
    )
    assert assumed is not None
    fixed, layer = map(int, assumed.groups())
    for found in (one, two):
        launches = fixed + layer * found["layers"]
        assert found["counts"]["launches"] == pytest.approx(launches, rel=0.1)
