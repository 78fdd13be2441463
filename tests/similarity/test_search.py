"""Exact search, checked against plain products, and unit vectors."""

from __future__ import annotations

import numpy as np
import pytest

from avvp_dist.similarity.search import nearest, unit


def test_neighbours_agree_with_a_plain_product() -> None:
    rng = np.random.default_rng(0)
    queries, database = (unit(rng.standard_normal((n, 24))) for n in (40, 300))
    cosines, rows = nearest(queries, database, 17)
    exact = queries.astype(np.float64) @ database.T.astype(np.float64)
    np.testing.assert_array_equal(rows, np.argsort(-exact, 1)[:, :17])
    np.testing.assert_allclose(cosines, -np.sort(-exact, 1)[:, :17], atol=1e-6)


def test_equal_vectors_are_all_found() -> None:
    vectors = unit(np.random.default_rng(1).standard_normal((6, 8)).repeat(3, 0))
    cosines, rows = nearest(vectors, vectors, 3)
    assert [sorted(row) for row in rows.tolist()] == [
        [3 * (n // 3) + m for m in range(3)] for n in range(18)
    ]
    assert np.abs(cosines - 1).max() < 1e-6 and cosines.max() <= 1


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_vectors_without_direction_become_zero_and_are_near_nothing(bad: float) -> None:
    vectors = np.array([[3, 4], [bad, bad], [-3, -4]], np.float16)
    scaled = unit(vectors)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [[0.6, 0.8], [0, 0], [-0.6, -0.8]], atol=1e-6)
    cosines, rows = nearest(scaled, scaled, 3)
    assert cosines[rows == 1].tolist() == [0, 0, 0]
