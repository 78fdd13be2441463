"""Near-duplicates, checked against networkx and against the products of all pairs."""

from __future__ import annotations

from typing import Any

import networkx
import numpy as np
import pytest
from numpy.typing import NDArray

from avvp_dist.similarity import duplicates
from avvp_dist.similarity.duplicates import (
    duplicate_links,
    merge,
    near_duplicates,
    nearest_duplicates,
    representatives,
)
from avvp_dist.similarity.embeddings import joint_vectors, stream_cosines

DIMS = [6, 9]


def clips(count: int, seed: int = 0, snippets: int = 4) -> dict[str, NDArray[np.float16]]:
    rng = np.random.default_rng(seed)
    shapes = {"audio": (count, snippets, 6), "visual": (count, snippets, 9)}
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


def lengths_of(streams: dict[str, NDArray[np.float16]]) -> NDArray[np.int64]:
    return np.full(len(streams["audio"]), streams["audio"].shape[1])


def repeated(streams: dict[str, Any], rows: list[int], noise: float = 0.01) -> dict[str, Any]:
    """Clips followed by noisy copies of the clips `rows`."""
    rng = np.random.default_rng(1)
    out = {}
    for name, x in streams.items():
        again = x[rows] + noise * rng.standard_normal(x[rows].shape)
        out[name] = np.concatenate([x, again.astype(np.float16)])
    return out


def crowd(count: int, around: int, seed: int = 0) -> NDArray[np.float32]:
    """Joint vectors in groups: pairs of one group are near, other pairs far."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((around, sum(DIMS)))
    x = centres[rng.integers(0, around, count)] + 0.25 * rng.standard_normal((count, sum(DIMS)))
    return joint_vectors(x.astype(np.float16), DIMS)


def all_near(one: Any, other: Any, similarity: float) -> NDArray[np.bool_]:
    """Near-duplicates among all pairs, by plain products."""
    parts = [(one[:, :6], other[:, :6]), (one[:, 6:], other[:, 6:])]
    near: NDArray[np.bool_] = np.all([2 * (a @ b.T) >= similarity for a, b in parts], axis=0)
    return near


def test_a_copy_under_another_name_is_left_out() -> None:
    streams = repeated(clips(50), [3, 17, 17])
    out = near_duplicates(streams, lengths_of(streams), 0.95)
    assert np.flatnonzero(out).tolist() == [50, 51, 52]


def test_the_duplicate_with_the_lowest_hash_is_kept() -> None:
    streams = repeated(clips(50), [3, 17, 17])
    hashes = np.arange(100, 153, dtype=np.uint64)
    hashes[[3, 50]], hashes[[17, 51, 52]] = [9, 8], [9, 8, 7]
    out = near_duplicates(streams, lengths_of(streams), 0.95, hashes)
    assert np.flatnonzero(out).tolist() == [3, 17, 51]


def test_every_stream_has_to_be_near() -> None:
    streams = repeated(clips(20), [5])
    streams["audio"][20] = streams["audio"][6]
    assert not near_duplicates(streams, lengths_of(streams), 0.9).any()


def test_silent_clips_are_no_duplicates() -> None:
    streams = repeated(clips(20), [5, 5])
    streams["audio"][[5, 20]] = 0
    streams["audio"][7:9] = streams["visual"][7:9] = 0
    assert not near_duplicates(streams, lengths_of(streams), 0.9).any()


def test_padding_does_not_make_clips_similar() -> None:
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
    """Also if more neighbours are near than the search returns."""
    monkeypatch.setattr(duplicates, "NEIGHBOURS", neighbours)
    x = crowd(300, 20)
    near = all_near(x, x, similarity)
    expected = sorted(map(min, networkx.connected_components(networkx.Graph(near))))
    assert len(expected) < 290 or similarity == 1
    whole, parts = np.arange(300), np.arange(300)
    merge(whole, *duplicate_links(x, None, DIMS, similarity))
    for rows in np.split(np.arange(300), [200]):
        linked = duplicate_links(x[rows], None, DIMS, similarity)
        merge(parts, *(rows[end] for end in linked))
    merge(parts, *duplicate_links(x[:200], x[200:], DIMS, similarity))
    assert sorted(set(whole.tolist())) == expected
    np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize("neighbours", [(2, 4), (64, 256, 1024, 2048)])
@pytest.mark.parametrize("similarity", [0.7, 0.9])
def test_the_nearest_of_several_near_duplicates_is_returned(
    monkeypatch: pytest.MonkeyPatch, neighbours: tuple[int, ...], similarity: float
) -> None:
    monkeypatch.setattr(duplicates, "NEIGHBOURS", neighbours)
    queries, database = crowd(80, 20, 1), crowd(100, 20)
    database[40:] = crowd(60, 5, 1)
    database[90:] = queries[70:]
    near = all_near(queries, database, similarity)
    rows, match, cosines = nearest_duplicates(queries, database, DIMS, similarity)
    assert 10 <= len(rows) < 80
    assert rows.tolist() == np.flatnonzero(near.any(1)).tolist()
    products = np.where(near, queries @ database.T, -1)[rows]
    np.testing.assert_allclose(products[np.arange(len(rows)), match], products.max(1), atol=1e-6)
    np.testing.assert_allclose(cosines, stream_cosines(queries[rows], database[match], DIMS))


def test_none_is_kept_of_a_component_with_an_excluded_clip() -> None:
    roots = np.array([0, 0, 2, 0, 2, 5])
    hashes = np.array([5, 4, 3, 2, 1, 0], np.uint64)
    assert representatives(roots, hashes).tolist() == [3, 3, 4, 3, 4, 5]
    excluded = np.array([True, False, False, False, False, True])
    assert representatives(roots, hashes, excluded).tolist() == [0, 0, 4, 0, 4, 5]


def test_a_corpus_of_equal_clips_does_not_fill_the_memory() -> None:
    x = np.repeat(crowd(1, 1), 3000, 0)
    first, second = duplicate_links(x, None, DIMS, 0.95)
    assert len(first) == 2999
    assert set(second.tolist()) == {0}
