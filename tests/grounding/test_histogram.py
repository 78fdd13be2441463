"""Histograms of cosines: near the exact quantile, and the same in whatever order they add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avvp_dist.grounding.histogram import STEP, CosineHistogram


def cosines(seed: int, count: int = 5000) -> np.ndarray:
    return np.tanh(np.random.default_rng(seed).standard_normal(count)).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.randoms(use_true_random=False))
def test_neither_parts_nor_their_order_matter(seed: int, parts: int, random: object) -> None:
    values = cosines(seed, 500)
    pieces = [CosineHistogram.of(part) for part in np.array_split(values, parts)]
    random.shuffle(pieces)  # type: ignore[attr-defined]
    total = sum(pieces[1:], pieces[0])
    np.testing.assert_array_equal(total.counts, CosineHistogram.of(values).counts)


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.01, 0.001])
def test_a_threshold_is_the_exact_quantile_up_to_a_bin(rate: float) -> None:
    values = cosines(1)
    histogram = CosineHistogram.of(values)
    threshold = histogram.threshold(rate)
    exact = np.quantile(values, 1 - rate, method="inverted_cdf")
    assert threshold == pytest.approx(exact, abs=1.1 * STEP)
    assert (values >= threshold).mean() <= rate
    assert histogram.fraction_reaching(threshold) == pytest.approx(
        (values >= threshold).mean(), abs=1e-9
    )
    assert histogram.quantile(1 - rate) == pytest.approx(exact, abs=1.1 * STEP)


def test_the_ends_of_the_scale() -> None:
    histogram = CosineHistogram.of(np.array([-1.0, 0.5, 1.0, 1.0], np.float32))
    assert (histogram.total, histogram.fraction_reaching(-1), histogram.fraction_reaching(1)) == (
        4,
        1.0,
        0.5,
    )
    assert histogram.threshold(1) == -1
    assert histogram.threshold(0.5) == pytest.approx(0.5001)
    assert histogram.threshold(0) == 1, "more than that are 1"


def test_vectors_without_direction_do_not_count() -> None:
    histogram = CosineHistogram.of(np.array([[-np.inf, np.nan], [0.1, np.inf]]))
    assert histogram.total == 1
    assert CosineHistogram().fraction_reaching(0) == 0
