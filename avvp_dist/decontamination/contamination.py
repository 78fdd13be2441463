"""Clips of LLP's held-out videos in a shard set that is to be trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from avvp_dist.annotations.video_ids import llp_heldout, videos
from avvp_dist.shards.shard_set import ShardSet


def contaminated(shards: ShardSet) -> dict[str, NDArray[np.int64]]:
    """Clip numbers of LLP's held-out videos that `shards` does not exclude, by LLP split.

    Raises:
        DataError: if the list of excluded clips is damaged.
    """
    names = llp_heldout()
    rows = names.find(videos(shards.index["id"]))
    clips = np.flatnonzero((rows >= 0) & ~shards.excluded)
    shown = names.shown[rows[clips]]
    return {name.decode(): clips[shown == name] for name in np.unique(shown)}
