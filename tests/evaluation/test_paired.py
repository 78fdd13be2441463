"""Paired differences: intervals that hold the truth as often as they say, and power laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from avvp_dist.evaluation.paired import paired_difference, power_law


def arms(rng: np.random.Generator, gain: float, seeds: int, clips: int = 150) -> list[np.ndarray]:
    """Two arms that share clips and seeds, and differ by `gain` and by what is left to chance."""
    shared = rng.normal(0, 30, clips) + rng.normal(0, 5, (seeds, 1))
    return [
        shared + rng.normal(0, 2, (seeds, 1)) + rng.normal(0, 10, (seeds, clips)) + arm * gain
        for arm in (1, 0)
    ]


@pytest.mark.parametrize("seeds", [3, 10])
def test_intervals_hold_the_true_difference_in_at_least_95_of_100_studies(seeds: int) -> None:
    rng, held, widths = np.random.default_rng(1), 0, []
    for _ in range(200):
        found = paired_difference(*arms(rng, 1.5, seeds))
        held += found.low <= 1.5 <= found.high
        widths.append(found.high - found.low)
    assert held / 200 >= 0.93
    # An interval as wide as the scores would hold everything: it is not much wider than Student's.
    by_seed = math.sqrt(2 * 2**2 + 2 * 10**2 / 150)
    student = 2 * stats.t.ppf(0.975, seeds - 1) * by_seed / math.sqrt(seeds)
    assert np.mean(widths) < 1.4 * student


def test_what_arms_share_cancels_out() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 50, (6, 80))
    found = paired_difference(shared + 2, shared)
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2, 2))
    assert found.deviation == pytest.approx(0) and found.seeds_for(1.0) == 2


def test_seeds_for_an_effect_are_those_of_a_test_with_power() -> None:
    rng = np.random.default_rng(2)
    ours, theirs = arms(rng, 0.0, 400)
    needed = paired_difference(ours, theirs).seeds_for(2.0)
    assert needed is not None
    found = sum(
        stats.ttest_1samp((one - two).mean(1), 0).pvalue < 0.05
        for one, two in (arms(rng, 2.0, needed) for _ in range(300))
    )
    assert 0.7 < found / 300 < 0.95
    assert paired_difference(ours[:1], theirs[:1]).seeds_for(2.0) is None


def test_a_power_law_is_found_with_its_uncertainty() -> None:
    rng, clips = np.random.default_rng(3), [500, 1000, 2000, 4000]
    errors = 300 * np.array(clips)[:, None] ** -0.3 * np.exp(rng.normal(0, 0.02, (4, 8)))
    law = power_law(clips, 100 - errors)
    assert law.low < 0.3 < law.high and law.high - law.low < 0.1
    assert law.factor == pytest.approx(300, rel=0.2)
    score, low, high = law.score(1e6)
    assert low < 100 - 300 * 1e6**-0.3 < high and low < score < high
    near = law.score(2000)
    assert near[2] - near[1] < high - low  # far away less is known
