"""The order of an epoch: a pure function of seed, epoch and clips, on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avvp_dist.hashing import hash_permutation

Numbers = NDArray[np.integer]
"""Numbers of clips or of shards, one axis."""


@dataclass(frozen=True)
class ClipPool:
    """The clips of one shard set that an epoch draws from.

    `clips [n]` are clip numbers, ascending. `shards [n]` is the shard of each. An epoch takes
    `weight * n` clips: with a weight of 1 every clip once, with 0.5 every clip once in two epochs.
    """

    clips: Numbers
    shards: Numbers
    weight: float = 1.0

    @property
    def clips_per_epoch(self) -> int:
        """Number of clips that an epoch takes from this pool."""
        return round(self.weight * len(self.clips))


def epoch_order(pools: Sequence[ClipPool], seed: int, epoch: int, block: int = 0) -> Numbers:
    """Clip numbers of an epoch in their order, `[sum of clips_per_epoch]`.

    Each pool has an order of its own. Several pools are merged at random.

    Args:
        block: number of shards in a block. The shards of a pool are shuffled, then the clips
            within each block. With 0 all clips of a pool are shuffled together.
    """
    parts = [_pool_order(pool, number, seed, epoch, block) for number, pool in enumerate(pools)]
    if len(parts) == 1:
        return parts[0]
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    owner = owner[hash_permutation(len(owner), "merge", seed, epoch)]
    order = np.empty(len(owner), np.int64)
    for number, part in enumerate(parts):
        order[owner == number] = part
    return order


def _pool_order(pool: ClipPool, number: int, seed: int, epoch: int, block: int) -> Numbers:
    """The clips that an epoch takes from a pool: the next ones of an endless chain of passes."""
    size, count = len(pool.clips), pool.clips_per_epoch
    if not count:
        return pool.clips[:0]
    begin = epoch * count
    first, last = begin // size, (begin + count - 1) // size
    passes = [_one_pass(pool, (number, seed, turn), block) for turn in range(first, last + 1)]
    begin -= first * size
    return np.concatenate(passes)[begin : begin + count]


def _one_pass(pool: ClipPool, key: tuple[int, ...], block: int) -> Numbers:
    """Every clip of a pool once, in the order that belongs to `key`."""
    if not block:
        return pool.clips[hash_permutation(len(pool.clips), "clips", *key)]
    present = np.unique(pool.shards)
    bounds = np.searchsorted(pool.shards, np.append(present, present[-1] + 1))
    turn = hash_permutation(len(present), "shards", *key)
    parts = []
    for start in range(0, len(turn), block):
        rows = np.concatenate(
            [np.arange(bounds[s], bounds[s + 1]) for s in turn[start : start + block]]
        )
        parts.append(rows[hash_permutation(len(rows), "block", *key, start)])
    return pool.clips[np.concatenate(parts)]
