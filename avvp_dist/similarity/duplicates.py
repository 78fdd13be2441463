"""Near-duplicates: clips whose embeddings agree in every stream.

A clip's embedding in a stream is the mean direction of its real snippets. Two clips are
near-duplicates when the cosine of every stream reaches the threshold. They are found by one exact
search: with the streams' unit vectors side by side, over the root of their number, the inner
product is the mean of the streams' cosines, which no near-duplicate has below the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from avvp_dist.similarity.search import flat_index, unit

Rows = NDArray[np.int64]
Cosines = NDArray[np.float32]

NEIGHBOURS = (64, 256, 1024, 2048)
"""Nearest clips asked for, in turn, until one is not near enough; GPU faiss takes 2048 at most."""

_CLIPS_AT_ONCE = 1024
_QUERIES_AT_ONCE = 2048
_PRODUCTS_AT_ONCE = 256
_PAIRS_AT_ONCE = 4096
_ROUNDING = 1e-5


def near_duplicates(
    streams: Mapping[str, NDArray[np.float16]],
    lengths: NDArray[np.integer],
    similarity: float,
    hashes: NDArray[np.uint64] | None = None,
) -> NDArray[np.bool_]:
    """Which clips to leave out so that no near-duplicates are left, bool `[N]`.

    Of clips that are linked by near-duplicates one is kept, that of the lowest hash.

    Args:
        streams: float16 `[N, T, D]` by name.
        lengths: real snippets of each clip, `[N]`.
        similarity: the cosine that every stream has to reach.
        hashes: `[N]`; without them the first clip is kept.
    """
    dims = [x.shape[-1] for x in streams.values()]
    vectors, roots = concatenated(embeddings(streams, lengths), dims), np.arange(len(lengths))
    join(roots, *links(vectors, None, dims, similarity))
    order = np.arange(len(lengths), dtype=np.uint64) if hashes is None else hashes
    out: NDArray[np.bool_] = kept(roots, order) != np.arange(len(lengths))
    return out


def embeddings(
    streams: Mapping[str, NDArray[np.float16]], lengths: NDArray[np.integer]
) -> NDArray[np.float16]:
    """The embeddings of clips `[N, T, D]` in each stream, side by side: float16 `[N, sum of D]`.

    Snippets from `lengths [N]` on are padding. A stream of zeros has the embedding 0.
    """
    made = np.zeros((len(lengths), sum(x.shape[-1] for x in streams.values())), np.float16)
    for start in range(0, len(lengths), _CLIPS_AT_ONCE):
        part, column = slice(start, start + _CLIPS_AT_ONCE), 0
        for array in streams.values():
            x = unit(array[part])
            x[np.arange(x.shape[1]) >= lengths[part, None]] = 0
            made[part, column : column + x.shape[-1]] = unit(x.sum(1))
            column += x.shape[-1]
    return made


def concatenated(made: NDArray[np.float16], dims: Sequence[int]) -> NDArray[np.float32]:
    """Embeddings `[N, sum of dims]` as float32 of norm 1, or less where some streams are 0."""
    parts = np.split(made, np.cumsum(dims)[:-1], axis=1)
    vectors = np.concatenate([unit(part) for part in parts], 1)
    return vectors / np.sqrt(len(dims), dtype=np.float32)


def cosines(
    one: NDArray[np.float32], other: NDArray[np.float32], dims: Sequence[int]
) -> NDArray[np.float32]:
    """Cosine in each stream of the rows of `one [P, sum of dims]` and `other`, `[P, streams]`.

    Both are as `concatenated` gives them; a stream of zeros has the cosine 0.
    """
    ends = np.cumsum([0, *dims]).tolist()
    found = [
        np.einsum("pd,pd->p", one[:, start:end], other[:, start:end])
        for start, end in pairwise(ends)
    ]
    return np.clip(np.stack(found, 1) * len(dims), -1, 1)


def matches(
    queries: NDArray[np.float32],
    database: NDArray[np.float32],
    dims: Sequence[int],
    similarity: float,
) -> tuple[Rows, Rows, NDArray[np.float32]]:
    """Queries that have near-duplicates in a database, the nearest one of each, and its cosines.

    Returns:
        Rows of `queries [Q, D]`, ascending, int64 `[M]`; rows of `database [n, D]`, `[M]`; float32
        `[M, streams]`.
    """
    best = np.full(len(queries), -1)
    near = np.zeros((len(queries), len(dims)), np.float32)
    for first, second in _candidates(queries, database, similarity):
        for start in range(0, len(first), _PAIRS_AT_ONCE):
            some = slice(start, start + _PAIRS_AT_ONCE)
            cosine = cosines(queries[first[some]], database[second[some]], dims)
            good = np.flatnonzero((cosine >= _limit(similarity)).all(1))
            # The last one counts where a row is assigned more than once: the nearest.
            good = good[np.lexsort((-second[some][good], cosine[good].sum(1)))]
            rows, cosine = first[some][good], cosine[good]
            nearer = (best[rows] < 0) | (cosine.sum(1) > near[rows].sum(1))
            best[rows[nearer]] = second[some][good][nearer]
            near[rows[nearer]] = cosine[nearer]
    found = np.flatnonzero(best >= 0)
    return found, best[found], near[found]


def links(
    one: NDArray[np.float32],
    other: NDArray[np.float32] | None,
    dims: Sequence[int],
    similarity: float,
) -> tuple[Rows, Rows]:
    """Pairs of rows that link all near-duplicates within a part of a corpus, or of two parts.

    Not all pairs are given, which may be as many as there are clips squared, but enough to give
    the same connected components. Rows of `one [Q, D]` are 0..Q-1, those of `other [n, D]`, the
    second part, follow them.
    """
    shift = 0 if other is None else len(one)
    database = one if other is None else other
    roots = np.arange(shift + len(database))
    for first, second in _candidates(one, database, similarity):
        for start in range(0, len(first), _PAIRS_AT_ONCE):
            some = slice(start, start + _PAIRS_AT_ONCE)
            apart = roots[first[some]] != roots[second[some] + shift]
            a, b = first[some][apart], second[some][apart]
            good = (cosines(one[a], database[b], dims) >= _limit(similarity)).all(1)
            join(roots, a[good], b[good] + shift)
    linked = np.flatnonzero(roots != np.arange(len(roots)))
    return linked, roots[linked]


def join(roots: Rows, first: Rows, second: Rows) -> None:
    """Join the components of `first [P]` with those of `second [P]`, in place.

    `roots [N]` has for each row the lowest row of its component.
    """
    while (roots[first] != roots[second]).any():
        low, high = np.sort([roots[first], roots[second]], axis=0)
        np.minimum.at(roots, high, low)
        while (roots != roots[roots]).any():
            roots[:] = roots[roots]


def kept(roots: Rows, hashes: NDArray[np.uint64], gone: NDArray[np.bool_] | None = None) -> Rows:
    """The clip that stands for each of `[N]` clips: that of the lowest hash in its component.

    Where some of a component are `gone [N]` anyway, one of them stands for it: then none is kept,
    as its clips are no better than those.
    """
    order = np.lexsort((hashes,) if gone is None else (hashes, ~gone))
    _, first, component = np.unique(roots[order], return_index=True, return_inverse=True)
    stands = np.empty_like(roots)
    stands[order] = order[first[component]]
    return stands


def _limit(similarity: float) -> float:
    return min(similarity, 1 - 1e-6)  # identical clips have 1 - 1e-7


def _candidates(
    queries: NDArray[np.float32], database: NDArray[np.float32], similarity: float
) -> Iterator[tuple[Rows, Rows]]:
    """Every pair whose mean cosine reaches the similarity, and a few below: rows, in parts."""
    limit = _limit(similarity) - _ROUNDING
    index = flat_index(database.shape[1])
    index.add(database)
    asked = np.arange(len(queries))
    for neighbours in NEIGHBOURS:
        k = min(neighbours, len(database))
        crowded = [asked[:0]]
        for start in range(0, len(asked), _QUERIES_AT_ONCE):
            some = asked[start : start + _QUERIES_AT_ONCE]
            cosine, rows = index.search(queries[some], k)
            near = cosine >= limit
            more = near[:, -1] & (k < len(database))
            query, place = np.nonzero(near & ~more[:, None])
            yield some[query], rows[query, place]
            crowded.append(some[more])
        asked = np.concatenate(crowded)
    for start in range(0, len(asked), _PRODUCTS_AT_ONCE):
        some = asked[start : start + _PRODUCTS_AT_ONCE]
        query, row = np.nonzero(queries[some] @ database.T >= limit)
        yield some[query], row
