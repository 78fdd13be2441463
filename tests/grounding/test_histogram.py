"""Sketches: near the exact quantile, and the same however they were added up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avvp_dist.grounding.sketch import STEP, Sketch


def cosines(seed: int, count: int = 5000) -> np.ndarray:
    return np.tanh(np.random.default_rng(seed).standard_normal(count)).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.randoms(use_true_random=False))
def test_parts_and_their_order_change_nothing(seed: int, parts: int, random: object) -> None:
    values = cosines(seed, 500)
    pieces = [Sketch.of(part) for part in np.array_split(values, parts)]
    random.shuffle(pieces)  # type: ignore[attr-defined]
    total = sum(pieces[1:], pieces[0])
    np.testing.assert_array_equal(total.counts, Sketch.of(values).counts)


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.01, 0.001])
def test_a_threshold_is_the_exact_quantile_up_to_a_bin(rate: float) -> None:
    values = cosines(1)
    sketch = Sketch.of(values)
    found = sketch.threshold(rate)
    exact = np.quantile(values, 1 - rate, method="inverted_cdf")
    assert found == pytest.approx(exact, abs=1.1 * STEP)
    assert (values >= found).mean() <= rate
    assert sketch.share(found) == pytest.approx((values >= found).mean(), abs=1e-9)
    assert sketch.quantile(1 - rate) == pytest.approx(exact, abs=1.1 * STEP)


def test_the_ends_of_the_scale() -> None:
    sketch = Sketch.of(np.array([-1.0, 0.5, 1.0, 1.0], np.float32))
    assert (sketch.total, sketch.share(-1), sketch.share(1)) == (4, 1.0, 0.5)
    assert sketch.threshold(1) == -1
    assert sketch.threshold(0.5) == pytest.approx(0.5001)
    assert sketch.threshold(0) == 1, "more than that are 1"


def test_vectors_without_direction_do_not_count() -> None:
    sketch = Sketch.of(np.array([[-np.inf, np.nan], [0.1, np.inf]]))
    assert sketch.total == 1
    assert Sketch().share(0) == 0
