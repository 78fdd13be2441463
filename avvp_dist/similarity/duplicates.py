"""Near-duplicates: clips whose embeddings agree in every stream.

Two clips are near-duplicates when their cosine reaches the threshold in every stream. Then the
mean of the cosines reaches it too, so one exact search over joint vectors (`embeddings.py`) finds
every candidate pair. The streams of each candidate are checked afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from avvp_dist.similarity.embeddings import embed, joint_vectors, stream_cosines
from avvp_dist.similarity.search import MAX_NEIGHBOURS, flat_index

Rows = NDArray[np.int64]
Cosines = NDArray[np.float32]

NEIGHBOURS = (64, 256, 1024, MAX_NEIGHBOURS)
"""Values of k for the search, tried in turn until the k-th neighbour is below the threshold."""

_QUERIES_PER_SEARCH = 2048
_QUERIES_PER_PRODUCT = 256
_PAIRS_PER_CHECK = 4096
_ROUNDING = 1e-5


def near_duplicates(
    streams: Mapping[str, NDArray[np.floating]],
    lengths: NDArray[np.integer],
    similarity: float,
    hashes: NDArray[np.uint64] | None = None,
) -> NDArray[np.bool_]:
    """Clips to leave out so that no near-duplicates remain, bool `[N]`.

    Of all clips that near-duplicates link, directly or through others, the one with the lowest
    hash is kept.

    Args:
        streams: `[N, T, D]` by name.
        lengths: number of real snippets of each clip, `[N]`.
        similarity: minimum cosine of near-duplicates in each stream.
        hashes: `[N]`; without them the first clip is kept.
    """
    dims = [x.shape[-1] for x in streams.values()]
    vectors, roots = joint_vectors(embed(streams, lengths), dims), np.arange(len(lengths))
    merge(roots, *duplicate_links(vectors, None, dims, similarity))
    order = np.arange(len(lengths), dtype=np.uint64) if hashes is None else hashes
    out: NDArray[np.bool_] = representatives(roots, order) != np.arange(len(lengths))
    return out


def nearest_duplicates(
    queries: NDArray[np.float32],
    database: NDArray[np.float32],
    dims: Sequence[int],
    similarity: float,
    *,
    gpu: bool = False,
) -> tuple[Rows, Rows, Cosines]:
    """Queries with near-duplicates in a database, and the nearest one of each.

    Args:
        queries: joint vectors `[Q, sum of dims]`.
        database: joint vectors `[n, sum of dims]`.
        dims: size of each stream.
        similarity: minimum cosine of near-duplicates in each stream.
        gpu: whether the search runs on this process's first GPU.

    Returns:
        Query rows in ascending order `[M]`, the database row of each `[M]`, and the cosine in each
        stream `[M, streams]`.
    """
    best = np.full(len(queries), -1)
    best_cosines = np.zeros((len(queries), len(dims)), np.float32)
    for first, second in _candidates(queries, database, similarity, gpu):
        for start in range(0, len(first), _PAIRS_PER_CHECK):
            block = slice(start, start + _PAIRS_PER_CHECK)
            cosines = stream_cosines(queries[first[block]], database[second[block]], dims)
            good = np.flatnonzero((cosines >= _limit(similarity)).all(1))
            # numpy keeps the last value assigned to a row: the nearest has to come last.
            good = good[np.lexsort((-second[block][good], cosines[good].sum(1)))]
            rows, cosines = first[block][good], cosines[good]
            nearer = (best[rows] < 0) | (cosines.sum(1) > best_cosines[rows].sum(1))
            best[rows[nearer]] = second[block][good][nearer]
            best_cosines[rows[nearer]] = cosines[nearer]
    matched = np.flatnonzero(best >= 0)
    return matched, best[matched], best_cosines[matched]


def duplicate_links(
    one: NDArray[np.float32],
    other: NDArray[np.float32] | None,
    dims: Sequence[int],
    similarity: float,
    *,
    gpu: bool = False,
) -> tuple[Rows, Rows]:
    """Pairs of rows that link all near-duplicates of one block of clips, or of two blocks.

    There may be as many near-duplicates as clips squared, so not all pairs are returned, but
    enough to give the same connected components.

    Args:
        one: joint vectors `[Q, sum of dims]`.
        other: joint vectors `[n, sum of dims]` of a second block; None searches `one` in itself.
        dims: size of each stream.
        similarity: minimum cosine of near-duplicates in each stream.
        gpu: whether the search runs on this process's first GPU.

    Returns:
        Both ends of each pair, `[P]` each. The rows of `one` are 0..Q-1, those of `other` follow.
    """
    shift = 0 if other is None else len(one)
    database = one if other is None else other
    roots = np.arange(shift + len(database))
    for first, second in _candidates(one, database, similarity, gpu):
        for start in range(0, len(first), _PAIRS_PER_CHECK):
            block = slice(start, start + _PAIRS_PER_CHECK)
            separate = roots[first[block]] != roots[second[block] + shift]
            a, b = first[block][separate], second[block][separate]
            good = (stream_cosines(one[a], database[b], dims) >= _limit(similarity)).all(1)
            merge(roots, a[good], b[good] + shift)
    linked = np.flatnonzero(roots != np.arange(len(roots)))
    return linked, roots[linked]


def merge(roots: Rows, first: Rows, second: Rows) -> None:
    """Merge the components of `first [P]` and `second [P]`, in place.

    `roots [N]` holds the lowest row of the component of each row.
    """
    while (roots[first] != roots[second]).any():
        low, high = np.sort([roots[first], roots[second]], axis=0)
        np.minimum.at(roots, high, low)
        while (roots != roots[roots]).any():
            roots[:] = roots[roots]


def representatives(
    roots: Rows, hashes: NDArray[np.uint64], excluded: NDArray[np.bool_] | None = None
) -> Rows:
    """Clip that represents the component of each clip: the one with the lowest hash, `[N]`.

    A component with clips that are already `excluded [N]` is represented by one of those, so that
    none of it is kept: its other clips are copies of what must not be trained on.
    """
    order = np.lexsort((hashes,) if excluded is None else (hashes, ~excluded))
    _, first, component = np.unique(roots[order], return_index=True, return_inverse=True)
    chosen = np.empty_like(roots)
    chosen[order] = order[first[component]]
    return chosen


def _limit(similarity: float) -> float:
    return min(similarity, 1 - 1e-6)  # float32 gives identical clips 1 - 1e-7


def _candidates(
    queries: NDArray[np.float32], database: NDArray[np.float32], similarity: float, gpu: bool
) -> Iterator[tuple[Rows, Rows]]:
    """Query rows and database rows of all pairs whose mean cosine reaches the similarity.

    They come in blocks, with a few pairs just below it.
    """
    limit = _limit(similarity) - _ROUNDING
    index = flat_index(database.shape[1], gpu=gpu)
    index.add(database)
    left = np.arange(len(queries))
    for neighbours in NEIGHBOURS:
        k = min(neighbours, len(database))
        crowded = [left[:0]]
        for start in range(0, len(left), _QUERIES_PER_SEARCH):
            block = left[start : start + _QUERIES_PER_SEARCH]
            cosines, rows = index.search(queries[block], k)
            near = cosines >= limit
            more = near[:, -1] & (k < len(database))
            query, place = np.nonzero(near & ~more[:, None])
            yield block[query], rows[query, place]
            crowded.append(block[more])
        left = np.concatenate(crowded)
    # Queries with more near neighbours than faiss returns: compare them with everything.
    for start in range(0, len(left), _QUERIES_PER_PRODUCT):
        block = left[start : start + _QUERIES_PER_PRODUCT]
        query, row = np.nonzero(queries[block] @ database.T >= limit)
        yield block[query], row
