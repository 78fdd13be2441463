"""The order of an epoch: a pure function of (seed, epoch, clips), the same everywhere and for ever.

It is computed with integers alone, from no library's random numbers: what they draw may change
with their version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.integer]


@dataclass(frozen=True)
class ClipPool:
    """The clips of one shard set as the order sees them.

    `clips [n]` are numbers, ascending; `shards [n]` is the shard of each. An epoch takes
    `weight * n` clips of the pool: each once for a weight of 1, each once in two epochs for 0.5.
    """

    clips: Numbers
    shards: Numbers
    weight: float = 1.0

    @property
    def share(self) -> int:
        """Clips in an epoch."""
        return round(self.weight * len(self.clips))


def shuffled(count: int, *key: int | str) -> NDArray[np.int64]:
    """A permutation of 0..count-1 that belongs to `key`.

    The numbers are sorted by the finalizer of SplitMix64 (Steele et al., 2014), a bijection on 64
    bits: there are no ties, so every sorting algorithm gives the same order.
    """
    return np.argsort(_stream(np.arange(count), key))


def hash_uniform(numbers: Numbers, *key: int | str) -> NDArray[np.float64]:
    """For each of `numbers [n]` one in [0, 1) that belongs to it and to `key` alone."""
    return np.asarray((_stream(numbers, key) >> np.uint64(11)) * 2.0**-53, np.float64)


def _stream(numbers: Numbers, key: tuple[int | str, ...]) -> NDArray[np.uint64]:
    """What SplitMix64, seeded by `key`, gives at these places."""
    start = int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:8], "big")
    return mixed(numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start))


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer of each number: a bijection whose values look random."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def epoch_order(pools: Sequence[ClipPool], seed: int, epoch: int, block: int = 0) -> Numbers:
    """The clips of an epoch in their order, `[sum of shares]`.

    Pools that are mixed are merged at random, each in an order of its own.

    Args:
        block: 0: all clips of a pool are shuffled; else its shards are, and then the clips within
            each block of so many shards.
    """
    parts = [_turn(pool, number, seed, epoch, block) for number, pool in enumerate(pools)]
    if len(parts) == 1:
        return parts[0]
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    owner = owner[shuffled(len(owner), "merge", seed, epoch)]
    order = np.empty(len(owner), np.int64)
    for number, part in enumerate(parts):
        order[owner == number] = part
    return order


def _turn(pool: ClipPool, number: int, seed: int, epoch: int, block: int) -> Numbers:
    """What an epoch takes of a pool, whose passes follow each other without end."""
    size, begin = len(pool.clips), epoch * pool.share
    if not pool.share:
        return pool.clips[:0]
    first, last = begin // size, (begin + pool.share - 1) // size
    passes = [_one_pass(pool, (number, seed, turn), block) for turn in range(first, last + 1)]
    begin -= first * size
    return np.concatenate(passes)[begin : begin + pool.share]


def _one_pass(pool: ClipPool, key: tuple[int, ...], block: int) -> Numbers:
    if not block:
        return pool.clips[shuffled(len(pool.clips), "clips", *key)]
    present = np.unique(pool.shards)
    bounds = np.searchsorted(pool.shards, np.append(present, present[-1] + 1))
    turn = shuffled(len(present), "shards", *key)
    parts = []
    for start in range(0, len(turn), block):
        rows = np.concatenate(
            [np.arange(bounds[s], bounds[s + 1]) for s in turn[start : start + block]]
        )
        parts.append(rows[shuffled(len(rows), "block", *key, start)])
    return pool.clips[np.concatenate(parts)]
