"""Search on the device beside the same search on the CPU, with torch in the same process."""

from __future__ import annotations

import time
from collections.abc import Iterator

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from avvp_dist.similarity.search import flat_index, unit
from tools.bench.gpu.rows import Note, Search, Setting

NEIGHBOURS = 20
TOLERANCE = 1e-5
"""Difference of two cosines that are sums in another order."""

Found = tuple[NDArray[np.float32], NDArray[np.int64]]


def run(setting: Setting, deadline: float) -> Iterator[Search | Note]:
    """Search for the neighbours of a tenth of all vectors."""
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((setting.vectors, setting.dims[1]), np.float32))
    queries = vectors[::10]
    product = _torch_product()
    dim, on_gpu = vectors.shape[1], setting.device == "gpu"
    (cosines, rows), seconds = _found(flat_index(dim, gpu=on_gpu), vectors, queries)
    (expected, expected_rows), cpu_seconds = _found(flat_index(dim), vectors, queries)
    worst = float(np.abs(cosines - expected).max())
    yield Search(
        vectors=len(vectors),
        neighbours=NEIGHBOURS,
        worst_cosine=worst,
        other_rows=float((rows != expected_rows).mean()),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )
    if not worst <= TOLERANCE:
        yield Note(f"cosines differ by up to {worst:.2g}, more than {TOLERANCE:g}", failed=True)
    if _torch_product() != product:
        yield Note("a product of torch is another one after faiss has run", failed=True)


def _found(
    index: faiss.Index, vectors: NDArray[np.float32], queries: NDArray[np.float32]
) -> tuple[Found, float]:
    """Cosines and rows `[Q, k]`, and the seconds of the second of two searches."""
    index.add(vectors)
    index.search(queries[:1], NEIGHBOURS)  # the first one sets a GPU up
    begun = time.perf_counter()
    cosines, rows = index.search(queries, NEIGHBOURS)
    return (cosines, rows), time.perf_counter() - begun


def _torch_product() -> float:
    """A product on the device: torch and faiss must run side by side."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.arange(64.0, device=device).view(8, 8)
    return float((a @ a).sum())
