"""Hashed draws: the same numbers in every version, and even enough to shuffle and to sample by."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from avvp_dist.hashing import hash_permutation, hash_uniform, splitmix64


def test_the_numbers_never_change() -> None:
    """Checkpoints resume in this order, and validation clips are chosen by these draws."""
    assert hash_permutation(8, 1).tolist() == [1, 3, 5, 6, 4, 7, 0, 2]
    assert hash_permutation(8, "clips", 0, 7, 3).tolist() == [5, 2, 7, 1, 3, 4, 0, 6]
    assert hash_uniform(np.arange(2), "anchors", 1, 7).tolist() == [
        0.14604729583097364,
        0.8885956466320603,
    ]


def test_the_finalizer_is_that_of_splitmix64() -> None:
    """First outputs of the reference generator seeded with 0 (Vigna's splitmix64.c)."""
    state = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(value) for value in splitmix64(state).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 2**40), st.integers(0, 99))
def test_a_permutation_has_every_number_once(count: int, seed: int, epoch: int) -> None:
    assert sorted(hash_permutation(count, seed, epoch)) == list(range(count))


def test_permutations_are_even() -> None:
    """Each number comes to each place equally often: chi-squared over 2,000 permutations of 10."""
    counts = np.zeros((10, 10))
    for epoch in range(2000):
        counts[np.arange(10), hash_permutation(10, 5, epoch)] += 1
    assert ((counts - 200) ** 2 / 200).sum() < 150  # 81 expected, standard deviation 12.7


def test_a_draw_belongs_to_its_number_and_key_alone() -> None:
    numbers = np.arange(20_000)
    draws = hash_uniform(numbers, "anchors", 1, 7)
    assert np.array_equal(hash_uniform(numbers[::-3], "anchors", 1, 7), draws[::-3])
    counts, _ = np.histogram(draws, 10, (0, 1))
    assert abs(counts - 2000).max() < 200  # standard deviation 42
    for other in (
        hash_uniform(numbers, "anchors", 1, 8),
        hash_uniform(numbers, "anchors", 2, 7),
        draws[::-1],
    ):
        assert abs(np.corrcoef(draws, other)[0, 1]) < 0.03
