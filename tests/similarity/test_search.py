"""Exact search, against plain products."""

from __future__ import annotations

import numpy as np
import pytest

from avvp_dist.similarity.search import nearest, unit


def test_neighbours_are_those_of_a_plain_product() -> None:
    rng = np.random.default_rng(0)
    queries, database = (unit(rng.standard_normal((n, 24))) for n in (40, 300))
    found, rows = nearest(queries, database, 17)
    exact = queries.astype(np.float64) @ database.T.astype(np.float64)
    np.testing.assert_array_equal(rows, np.argsort(-exact, 1)[:, :17])
    np.testing.assert_allclose(found, -np.sort(-exact, 1)[:, :17], atol=1e-6)


def test_equal_vectors_are_all_found() -> None:
    vectors = unit(np.random.default_rng(1).standard_normal((6, 8)).repeat(3, 0))
    found, rows = nearest(vectors, vectors, 3)
    assert [sorted(row) for row in rows.tolist()] == [
        [3 * (n // 3) + m for m in range(3)] for n in range(18)
    ]
    assert np.abs(found - 1).max() < 1e-6 and found.max() <= 1


def test_more_neighbours_than_there_are() -> None:
    database = np.eye(2, 3, dtype=np.float32)
    found, rows = nearest(database[:1], database, 4)
    assert rows.tolist() == [[0, 1, -1, -1]]
    assert found.tolist() == [[1, 0, -np.inf, -np.inf]]


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_vectors_without_direction_become_zero_and_reach_nothing(bad: float) -> None:
    vectors = np.array([[3, 4], [bad, bad], [-3, -4]], np.float16)
    found = unit(vectors)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [-0.6, -0.8]], atol=1e-6)
    cosines, rows = nearest(found, found, 3)
    assert cosines[rows == 1].tolist() == [0, 0, 0]
