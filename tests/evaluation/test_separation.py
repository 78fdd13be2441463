"""Separation of classes: the numbers of plain loops over pairs."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from avvp_dist.evaluation import separation
from avvp_dist.evaluation.separation import auc_across, separation_within

CLIPS, SNIPPETS, DIM, CLASSES = 7, 5, 4, 3
Pair = tuple[float, bool]


def made() -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors `[N, T, D]` and the classes of each snippet: none, one or several."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(CLIPS, SNIPPETS, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True), rng.random(
        (CLIPS, SNIPPETS, CLASSES)
    ) > 0.6


def pair_of(x: np.ndarray, y: np.ndarray, one: np.ndarray, other: np.ndarray) -> list[Pair]:
    """Cosine of a pair and whether it shares a class; empty if one has no class."""
    return [(float(x @ y), bool((one & other).any()))] if one.any() and other.any() else []


def auc_of(pairs: list[Pair]) -> float:
    wins = [
        (same > different) + 0.5 * (same == different)
        for same, shared in pairs
        if shared
        for different, other in pairs
        if not other
    ]
    return float(np.mean(wins))


def test_within_clips_it_is_that_of_a_loop_over_pairs() -> None:
    x, classes = made()
    pairs = [
        pair
        for clip in range(CLIPS)
        for i, j in combinations(range(SNIPPETS), 2)
        for pair in pair_of(x[clip, i], x[clip, j], classes[clip, i], classes[clip, j])
    ]
    found = separation_within(x, classes)
    assert found.auc == pytest.approx(auc_of(pairs), abs=1e-6)
    different = [cosine for cosine, shared in pairs if not shared]
    assert found.different == pytest.approx(np.mean(different), abs=1e-6)


@pytest.mark.parametrize("rows", [4, 1000])
def test_across_clips_it_is_that_of_a_loop_over_pairs(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separation, "_ROWS_AT_ONCE", rows)
    x, classes = (array.reshape(CLIPS * SNIPPETS, -1) for array in made())
    clips = np.arange(len(x)) // SNIPPETS
    pairs = [
        pair
        for i, j in combinations(range(len(x)), 2)
        if clips[i] != clips[j]
        for pair in pair_of(x[i], x[j], classes[i], classes[j])
    ]
    assert auc_across(x, classes, clips) == pytest.approx(auc_of(pairs), abs=1e-4)


def test_classes_that_are_apart_are_told_and_those_that_are_not_are_unknown() -> None:
    axes = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]][None].repeat(3, 0)
    classes = np.eye(2, dtype=bool)[[0, 1, 0, 1]][None].repeat(3, 0)
    assert separation_within(axes, classes) == (1.0, 0.0)
    flat, clips = classes.reshape(12, 2), np.arange(12) // 4
    assert auc_across(axes.reshape(12, 2), flat, clips) == 1.0
    for none in (np.zeros_like(classes), np.ones_like(classes)):
        assert all(math.isnan(number) for number in separation_within(axes, none))
        assert math.isnan(auc_across(axes.reshape(12, 2), none.reshape(12, 2), clips))
