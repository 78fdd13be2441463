"""Clips of LLP's held-out videos in a shard set that is to be trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avvp_dist.annotations.video_ids import Videos, llp_heldout, videos
from avvp_dist.shards.shard_set import ShardSet


@dataclass(frozen=True)
class Contamination:
    """Knowledge about LLP's held-out videos that the ids of a shard set give."""

    clips: dict[str, NDArray[np.int64]]
    """Numbers of their clips that the set does not exclude, by LLP split."""
    names: Videos
    """The videos that the clips' ids stand for."""

    def report(self, shards: ShardSet) -> str:
        """Say how many ids hold a video id, with a warning if most of them do not.

        Simulated clips are cut from no video.
        """
        told, unread = self.names.described(shards.name), int((~self.names.read).sum())
        if 2 * unread <= len(shards) or "simulated" in shards.extractor:
            return told
        return (
            f"warning: {told}; the others, such as {shards.id(int(np.argmin(self.names.read)))}, "
            "may be cut from held-out videos: compare their content with avvp decontaminate"
        )


def contamination(shards: ShardSet) -> Contamination:
    """Look for LLP's held-out videos among the clips of `shards`.

    Raises:
        DataError: if the list of excluded clips is damaged.
    """
    heldout, named = llp_heldout(), videos(shards.index["id"])
    rows = heldout.find(named.fingerprints)
    clips = np.flatnonzero((rows >= 0) & ~shards.excluded)
    shown = heldout.shown[rows[clips]]
    found = {name.decode(): clips[shown == name] for name in np.unique(shown)}
    return Contamination(found, named)
