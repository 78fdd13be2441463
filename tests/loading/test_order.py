"""The order of an epoch: every clip as often as its weight says, the same on every machine."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avvp_dist.loading.order import ClipPool, epoch_order

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=8)
"""Number of clips in each shard of a set."""


def pool(sizes: list[int], first: int = 0, weight: float = 1.0) -> ClipPool:
    """Pool of a set with shards of these sizes, without every fifth clip."""
    clips = np.arange(sum(sizes))
    shards = np.repeat(np.arange(len(sizes)), sizes)
    kept = clips % 5 != 3
    return ClipPool(clips[kept] + first, shards[kept], weight)


def test_the_order_never_changes() -> None:
    """A checkpoint of another version, machine or NumPy goes on in the same order."""
    order = epoch_order([pool([3, 4, 5]), pool([4], 12, 0.5)], seed=2, epoch=3, block=2)
    assert order.tolist() == [5, 6, 1, 2, 4, 0, 10, 13, 14, 11, 7, 9]


@settings(deadline=None)
@given(SIZES, st.integers(0, 4), st.integers(0, 9), st.integers(0, 9))
def test_an_epoch_has_every_clip_once(sizes: list[int], block: int, seed: int, epoch: int) -> None:
    one = pool(sizes)
    order = epoch_order([one], seed, epoch, block)
    assert sorted(order) == one.clips.tolist()


@settings(deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(0, 9))
def test_a_block_is_finished_before_the_next(sizes: list[int], block: int, seed: int) -> None:
    one = pool(sizes)
    owner = dict(zip(one.clips.tolist(), one.shards.tolist(), strict=True))
    order = [owner[clip] for clip in epoch_order([one], seed, 0, block).tolist()]
    turn = list(dict.fromkeys(order))
    number = {shard: place // block for place, shard in enumerate(turn)}
    blocks = [number[shard] for shard in order]
    assert blocks == sorted(blocks)


@settings(deadline=None)
@given(
    st.lists(st.tuples(SIZES, st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0])), min_size=1, max_size=3),
    st.integers(0, 3),
    st.integers(0, 5),
)
def test_a_mixture_keeps_its_weights(
    sets: list[tuple[list[int], float]], block: int, seed: int
) -> None:
    pools = [pool(sizes, 1000 * number, weight) for number, (sizes, weight) in enumerate(sets)]
    epochs = [epoch_order(pools, seed, epoch, block) for epoch in range(8)]
    seen = np.concatenate(epochs)
    for number, part in enumerate(pools):
        mine = [int(((epoch // 1000) == number).sum()) for epoch in epochs]
        assert set(mine) == {part.clips_per_epoch} == {round(part.weight * len(part.clips))}
        counts = [int((seen == clip).sum()) for clip in part.clips]
        # A pass may end within an epoch, but no clip is two passes ahead of another.
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == 8 * part.clips_per_epoch


def test_the_clips_of_mixed_sets_are_interleaved() -> None:
    order = epoch_order([pool([100]), pool([100], 1000)], 1, 0)
    halves = [(order[:80] >= 1000).mean(), (order[80:] >= 1000).mean()]
    assert all(0.3 < half < 0.7 for half in halves)


@pytest.mark.parametrize("block", [0, 2])
def test_seed_epoch_and_set_change_the_order(block: int) -> None:
    sizes = [20, 20, 20]
    order = epoch_order([pool(sizes)], 1, 1, block).tolist()
    others = [
        epoch_order([pool(sizes)], 2, 1, block),
        epoch_order([pool(sizes)], 1, 2, block),
        pool(sizes).clips,
        epoch_order([pool([1]), pool(sizes)], 1, 1, block)[1:],
    ]
    assert all(other.tolist() != order for other in others)
