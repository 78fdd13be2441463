"""Subsets of the training clips, of which smaller ones lie in larger ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import ConfigError
from avvp_dist.hashing import hash_uniform
from avvp_dist.loading.mixture import Mixture


def subset(
    data: Mixture, usable: NDArray[np.bool_], clips: Sequence[int], seed: int
) -> NDArray[np.bool_]:
    """Mask of the clips to train on, `[N]`: a number of the `usable [N]` clips of each shard set.

    A hash of `seed` and the clip's id decides. So with one seed fewer clips are among more, in
    whichever shards they lie.

    Args:
        clips: number of clips of each set; empty: all usable ones.

    Raises:
        ConfigError: if there is not one number for each set, or a set has fewer clips.
    """
    taken = usable & ~data.excluded
    if not clips:
        return taken
    if len(clips) != len(data.sets):
        raise ConfigError(
            f"data.clips={list(clips)} is not one number for each of the {len(data.sets)} shard "
            "sets"
        )
    place = hash_uniform(data.hashes, "subset", seed)
    chosen = np.zeros(len(data), bool)
    for part, start, count in zip(data.sets, data.starts.tolist(), clips, strict=False):
        mine = start + np.flatnonzero(taken[start : start + len(part)])
        if len(mine) < count:
            raise ConfigError(
                f"data.clips={list(clips)}: {part.name} has {len(mine):,} clips to train on",
                remedy="Take fewer, or leave out data.clips to take all",
            )
        chosen[mine[np.argsort(place[mine], kind="stable")[:count]]] = True
    return chosen
