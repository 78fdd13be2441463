"""Exact search for nearest neighbours, with faiss: on all GPUs it sees, else on the CPU."""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

GPU = hasattr(faiss, "StandardGpuResources")
"""Whether this faiss can use one."""
MOST_NEIGHBOURS = 2048
"""More than that GPU faiss cannot find."""


def flat_index(dim: int) -> faiss.Index:
    """An empty index for exact inner products of float32 vectors of this size."""
    index: faiss.Index = faiss.IndexFlatIP(dim)
    if GPU and faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_all_gpus(index)
    return index


def nearest(
    queries: NDArray[np.float32], database: NDArray[np.float32], neighbours: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `k = neighbours` nearest rows of `database [n, D]` to each of `queries [Q, D]`.

    Returns their cosines in [-1, 1], for unit vectors, and their numbers, both `[Q, k]`, nearest
    first; where the database has fewer rows, cosine -inf and number -1.
    """
    index = flat_index(database.shape[1])
    index.add(np.ascontiguousarray(database))
    found, rows = index.search(np.ascontiguousarray(queries), neighbours)
    np.clip(found, -1, 1, out=found)
    found[rows < 0] = -np.inf
    return found, rows


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Vectors `[..., D]` at length 1; zero where one has no direction (zero, or not finite)."""
    x = vectors.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = np.linalg.norm(x, axis=-1, keepdims=True)
    bad = ~((norm > 0) & np.isfinite(norm))
    return np.asarray(np.where(bad, 0, x) / np.where(bad, 1, norm), np.float32)
