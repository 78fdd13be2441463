"""Spread and effective rank tell what has collapsed from what has not."""

from __future__ import annotations

import numpy as np
import pytest

from avvp_dist.evaluation.collapse import collapsed, effective_rank, spread, spread_and_rank

RNG = np.random.default_rng(0)
EVEN = RNG.normal(size=(4000, 32))
LINE = np.outer(RNG.uniform(1, 2, 500), RNG.normal(size=32))


def test_spread_is_one_for_even_directions_and_nought_for_a_single_one() -> None:
    assert spread(EVEN) == pytest.approx(1, abs=0.02)
    assert spread(1000 * EVEN) == pytest.approx(spread(EVEN))
    assert spread(LINE) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dimensions", [1, 2, 8, 32])
def test_the_effective_rank_is_the_number_of_dimensions_that_are_filled(dimensions: int) -> None:
    x = EVEN[:, :dimensions] @ np.linalg.qr(RNG.normal(size=(64, dimensions)))[0].T
    assert effective_rank(x) == pytest.approx(dimensions, rel=0.01)


def test_weak_dimensions_count_for_less() -> None:
    scales = np.geomspace(1, 1e-3, 32)
    share = scales / scales.sum()
    expected = np.exp(-(share * np.log(share)).sum())
    assert 8 < expected < 16
    assert effective_rank(EVEN * scales) == pytest.approx(expected, rel=0.03)


def test_what_has_collapsed_is_named() -> None:
    found = spread_and_rank({"audio": EVEN, "visual": LINE})
    assert set(found) == {"spread_audio", "rank_audio", "spread_visual", "rank_visual"}
    (line,) = collapsed(found)
    assert line.startswith("the visual representations have collapsed: spread ")
