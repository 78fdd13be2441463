"""The order of an epoch: every clip as often as it should come, the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avvp_dist.loading.order import ClipPool, epoch_order, hash_uniform, shuffled

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=8)
"""Clips in each shard of a set."""


def pool(sizes: list[int], first: int = 0, weight: float = 1.0) -> ClipPool:
    """A set of shards of these sizes; every fifth clip is held out."""
    clips = np.arange(sum(sizes))
    shards = np.repeat(np.arange(len(sizes)), sizes)
    kept = clips % 5 != 3
    return ClipPool(clips[kept] + first, shards[kept], weight)


def test_the_order_is_this_one_for_ever() -> None:
    """A checkpoint of another version, machine or NumPy goes on in the same order."""
    assert shuffled(8, 1).tolist() == [1, 3, 5, 6, 4, 7, 0, 2]
    assert shuffled(8, "clips", 0, 7, 3).tolist() == [5, 2, 7, 1, 3, 4, 0, 6]
    order = epoch_order([pool([3, 4, 5]), pool([4], 12, 0.5)], seed=2, epoch=3, block=2)
    assert order.tolist() == [5, 6, 1, 2, 4, 0, 10, 13, 14, 11, 7, 9]


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 2**40), st.integers(0, 99))
def test_a_shuffle_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    assert sorted(shuffled(count, seed, epoch)) == list(range(count))


def test_shuffles_are_even() -> None:
    """Each clip comes to each place about as often: chi-squared over 2,000 shuffles of 10."""
    counts = np.zeros((10, 10))
    for epoch in range(2000):
        counts[np.arange(10), shuffled(10, 5, epoch)] += 1
    assert ((counts - 200) ** 2 / 200).sum() < 150  # 81 expected, deviation 12.7


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
        assert set(mine) == {part.share} == {round(part.weight * len(part.clips))}
        counts = [int((seen == clip).sum()) for clip in part.clips]
        # However the epochs cut it: nobody is two turns ahead of another.
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == 8 * part.share


def test_mixed_sets_lie_among_each_other() -> None:
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


def test_a_draw_belongs_to_its_number_and_key_alone() -> None:
    numbers = np.arange(20_000)
    draws = hash_uniform(numbers, "anchors", 1, 7)
    assert np.array_equal(hash_uniform(numbers[::-3], "anchors", 1, 7), draws[::-3])
    assert draws[:2].tolist() == [0.14604729583097364, 0.8885956466320603]
    counts, _ = np.histogram(draws, 10, (0, 1))
    assert abs(counts - 2000).max() < 200  # deviation 42
    for other in (
        hash_uniform(numbers, "anchors", 1, 8),
        hash_uniform(numbers, "anchors", 2, 7),
        draws[::-1],
    ):
        assert abs(np.corrcoef(draws, other)[0, 1]) < 0.03
