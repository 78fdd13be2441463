"""Clips of LLP's held-out videos, found in a shard set by their ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avvp_dist.decontamination.contamination import contamination
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip

HELDOUT = {"llp test": "4YdbENYcIyE", "llp val": "4O9rI-FpqLg"}
"""One held-out video of each split."""


def test_a_shard_set_with_held_out_videos_is_known(tmp_path: Path) -> None:
    ids = [f"{HELDOUT['llp val']}_500_510", "c1", f"{HELDOUT['llp test']}_1.5_9", "c3"]
    made = (Clip(one, {"audio": np.ones((2, 3))}) for one in ids)
    found = contamination(write_shard_set(made, tmp_path))
    assert found.names.read.tolist() == [True, False, True, False]
    assert {name: clips.tolist() for name, clips in found.clips.items()} == {
        "llp test": [2],
        "llp val": [0],
    }


@pytest.mark.parametrize(
    ("ids", "extractor", "warned"),
    [
        (["AAAAAAAAAAA_0_10", "BBBBBBBBBBB", "c"], "x", False),
        (["AAAAAAAAAAA_0_10", "b", "c"], "x", True),
        (["a", "b", "c"], "x", True),
        (["a", "b", "c"], "simulated", False),
    ],
)
def test_names_that_cannot_be_checked_are_warned_of(
    ids: list[str], extractor: str, warned: bool, tmp_path: Path
) -> None:
    made = (Clip(one, {"audio": np.ones((2, 3))}) for one in ids)
    shards = write_shard_set(made, tmp_path, extractor=extractor)
    told = contamination(shards).report(shards)
    read = sum(len(one) > 1 for one in ids)
    assert f"{read} of 3 names hold a video id" in told
    assert told.startswith("warning: ") == warned
    assert ("such as b, may be cut" in told or "such as a, may be cut" in told) == warned
