"""Near-duplicates among clips in memory, against networkx and all products."""

from __future__ import annotations

from typing import Any

import networkx
import numpy as np
import pytest
from numpy.typing import NDArray

from avvp_dist.similarity import duplicates
from avvp_dist.similarity.duplicates import (
    concatenated,
    cosines,
    embeddings,
    join,
    kept,
    links,
    matches,
    near_duplicates,
)

DIMS = [6, 9]


def clips(count: int, seed: int = 0, snippets: int = 4) -> dict[str, NDArray[np.float16]]:
    rng = np.random.default_rng(seed)
    shapes = {"audio": (count, snippets, 6), "visual": (count, snippets, 9)}
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


def lengths_of(streams: dict[str, NDArray[np.float16]]) -> NDArray[np.int64]:
    return np.full(len(streams["audio"]), streams["audio"].shape[1])


def repeated(streams: dict[str, Any], rows: list[int], noise: float = 0.01) -> dict[str, Any]:
    """The clips, and then some of them again with noise."""
    rng = np.random.default_rng(1)
    out = {}
    for name, x in streams.items():
        again = x[rows] + noise * rng.standard_normal(x[rows].shape)
        out[name] = np.concatenate([x, again.astype(np.float16)])
    return out


def crowd(count: int, around: int, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors of both streams in groups, near ones and far ones."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((around, sum(DIMS)))
    x = centres[rng.integers(0, around, count)] + 0.25 * rng.standard_normal((count, sum(DIMS)))
    return concatenated(x.astype(np.float16), DIMS)


def all_near(one: Any, other: Any, similarity: float) -> NDArray[np.bool_]:
    parts = [(one[:, :6], other[:, :6]), (one[:, 6:], other[:, 6:])]
    near: NDArray[np.bool_] = np.all([2 * (a @ b.T) >= similarity for a, b in parts], axis=0)
    return near


def test_an_embedding_is_the_mean_direction_of_the_real_snippets() -> None:
    x = np.array([[[3, 4], [0, 9], [60000, 0]], [[0, 0], [2, 0], [0, 0]]], np.float16)
    made = embeddings({"audio": x, "visual": 0 * x}, np.array([2, 3]))
    direction = np.array([0.6, 1.8]) / np.hypot(0.6, 1.8)
    np.testing.assert_allclose(made[:, :2], [direction, [1, 0]], atol=1e-3)
    assert made.dtype == np.float16 and not made[:, 2:].any()


def test_a_clip_under_another_name_is_left_out() -> None:
    streams = repeated(clips(50), [3, 17, 17])
    out = near_duplicates(streams, lengths_of(streams), 0.95)
    assert np.flatnonzero(out).tolist() == [50, 51, 52]


def test_of_duplicates_the_lowest_hash_is_kept() -> None:
    streams = repeated(clips(50), [3, 17, 17])
    hashes = np.arange(100, 153, dtype=np.uint64)
    hashes[[3, 50]], hashes[[17, 51, 52]] = [9, 8], [9, 8, 7]
    out = near_duplicates(streams, lengths_of(streams), 0.95, hashes)
    assert np.flatnonzero(out).tolist() == [3, 17, 51]


def test_every_stream_has_to_be_near() -> None:
    streams = repeated(clips(20), [5])
    streams["audio"][20] = streams["audio"][6]
    assert not near_duplicates(streams, lengths_of(streams), 0.9).any()


def test_silent_clips_are_no_duplicates_of_each_other() -> None:
    streams = repeated(clips(20), [5, 5])
    streams["audio"][[5, 20]] = 0
    streams["audio"][7:9] = streams["visual"][7:9] = 0
    assert not near_duplicates(streams, lengths_of(streams), 0.9).any()


def test_padding_is_no_likeness() -> None:
    streams, lengths = clips(2), np.array([2, 2])
    for x in streams.values():
        x[:, 2:] = 50
    assert not near_duplicates(streams, lengths, 0.5).any()
    assert near_duplicates(streams, lengths + 2, 0.5).any()


def test_identical_clips_reach_a_similarity_of_1() -> None:
    streams = clips(30, snippets=1)
    twice = {name: np.concatenate([x, x]) for name, x in streams.items()}
    out = near_duplicates(twice, lengths_of(twice), 1.0)
    assert out.tolist() == [False] * 30 + [True] * 30


@pytest.mark.parametrize("neighbours", [(2, 4), (64, 256, 1024, 2048)])
@pytest.mark.parametrize("similarity", [0.6, 0.8, 0.9, 1.0])
def test_links_give_the_components_of_all_pairs(
    monkeypatch: pytest.MonkeyPatch, neighbours: tuple[int, ...], similarity: float
) -> None:
    """However many neighbours are near: more than are asked for, too."""
    monkeypatch.setattr(duplicates, "NEIGHBOURS", neighbours)
    x = crowd(300, 20)
    near = all_near(x, x, similarity)
    expected = sorted(map(min, networkx.connected_components(networkx.Graph(near))))
    assert len(expected) < 290 or similarity == 1
    whole, parts = np.arange(300), np.arange(300)
    join(whole, *links(x, None, DIMS, similarity))
    for rows in np.split(np.arange(300), [200]):
        join(parts, *(rows[found] for found in links(x[rows], None, DIMS, similarity)))
    join(parts, *links(x[:200], x[200:], DIMS, similarity))
    assert sorted(set(whole.tolist())) == expected
    np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize("neighbours", [(2, 4), (64, 256, 1024, 2048)])
@pytest.mark.parametrize("similarity", [0.7, 0.9])
def test_a_match_is_the_nearest_of_all_that_are_near(
    monkeypatch: pytest.MonkeyPatch, neighbours: tuple[int, ...], similarity: float
) -> None:
    monkeypatch.setattr(duplicates, "NEIGHBOURS", neighbours)
    queries, database = crowd(80, 20, 1), crowd(100, 20)
    database[40:] = crowd(60, 5, 1)
    database[90:] = queries[70:]
    near = all_near(queries, database, similarity)
    rows, found, cosine = matches(queries, database, DIMS, similarity)
    assert 10 <= len(rows) < 80
    assert rows.tolist() == np.flatnonzero(near.any(1)).tolist()
    products = np.where(near, queries @ database.T, -1)[rows]
    np.testing.assert_allclose(products[np.arange(len(rows)), found], products.max(1), atol=1e-6)
    np.testing.assert_allclose(cosine, cosines(queries[rows], database[found], DIMS))


def test_where_one_of_a_component_goes_anyway_none_is_kept() -> None:
    roots = np.array([0, 0, 2, 0, 2, 5])
    hashes = np.array([5, 4, 3, 2, 1, 0], np.uint64)
    assert kept(roots, hashes).tolist() == [3, 3, 4, 3, 4, 5]
    gone = np.array([True, False, False, False, False, True])
    assert kept(roots, hashes, gone).tolist() == [0, 0, 4, 0, 4, 5]


def test_a_corpus_of_equal_clips_does_not_fill_the_memory() -> None:
    x = np.repeat(crowd(1, 1), 3000, 0)
    first, second = links(x, None, DIMS, 0.95)
    assert len(first) == 2999
    assert set(second.tolist()) == {0}
