"""Exact nearest-neighbour search with faiss, on the CPU or on one GPU that a task asked for."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from avvp_dist.similarity.cuda_versions import unloadable
from avvp_dist.task_gpu import use_gpu

try:
    import faiss
except (ImportError, RuntimeError) as error:  # the latter where CUDA libraries are missing
    raise unloadable(error) from None

GPU = hasattr(faiss, "StandardGpuResources")
"""Whether the installed faiss is the GPU build."""
MAX_NEIGHBOURS = 2048
"""Upper limit of k in GPU faiss."""


def searches_on_gpu() -> bool:
    """Whether the task that runs now searches on its GPU; see `use_gpu`.

    Raises:
        ClusterError: if Ray gave this task a GPU that faiss does not find.
    """
    return use_gpu("faiss", lambda: GPU and faiss.get_num_gpus() > 0)


def flat_index(dim: int, *, gpu: bool = False) -> faiss.Index:
    """Empty index for exact inner products of float32 vectors `[n, dim]`.

    Args:
        gpu: in the memory of the first GPU that this process sees, else in that of the host.
    """
    index: faiss.Index = faiss.IndexFlatIP(dim)
    return faiss.index_cpu_to_gpu(_gpu_resources(), 0, index) if gpu else index


@cache
def _gpu_resources() -> faiss.StandardGpuResources:
    """Streams and temporary memory of the GPU, over a gigabyte, for all indexes of a process."""
    return faiss.StandardGpuResources()


def nearest(
    queries: NDArray[np.float32], database: NDArray[np.float32], neighbours: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Nearest rows of a database of unit vectors to each query, found on the CPU.

    Args:
        queries: unit vectors `[Q, D]`.
        database: unit vectors `[n, D]`.
        neighbours: k, at most n and `MAX_NEIGHBOURS`.

    Returns:
        Cosines `[Q, k]` in [-1, 1] and row numbers in the database `[Q, k]`, nearest first.
    """
    index = flat_index(database.shape[1])
    index.add(np.ascontiguousarray(database))
    cosines, rows = index.search(np.ascontiguousarray(queries), neighbours)
    np.clip(cosines, -1, 1, out=cosines)
    return cosines, rows


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Vectors `[..., D]` scaled to length 1; zero for a vector that is zero or not finite."""
    x = vectors.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = np.linalg.norm(x, axis=-1, keepdims=True)
    bad = ~((norm > 0) & np.isfinite(norm))
    return np.asarray(np.where(bad, 0, x) / np.where(bad, 1, norm), np.float32)
