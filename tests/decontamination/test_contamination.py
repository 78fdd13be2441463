"""Clips of LLP's held-out videos, found in a shard set by their ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avvp_dist.decontamination.contamination import contaminated
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip

HELDOUT = {"llp test": "4YdbENYcIyE", "llp val": "4O9rI-FpqLg"}
"""One held-out video of each split."""


def test_a_shard_set_with_held_out_videos_is_known(tmp_path: Path) -> None:
    ids = [f"{HELDOUT['llp val']}_500_510", "c1", f"{HELDOUT['llp test']}_1.5_9", "c3"]
    made = (Clip(one, {"audio": np.ones((2, 3))}) for one in ids)
    found = contaminated(write_shard_set(made, tmp_path))
    assert {name: clips.tolist() for name, clips in found.items()} == {
        "llp test": [2],
        "llp val": [0],
    }
