"""Have representations collapsed? Two figures that say so, of vectors `[n, D]`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_LEAST_SPREAD, _LEAST_RANK = 0.05, 2.0


def spread(vectors: NDArray[np.floating]) -> float:
    """Standard deviation of the unit vectors in each dimension, averaged, times sqrt(D).

    1 for directions that are evenly spread, 0 for a single one (Chen & He, SimSiam, CVPR 2021).
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = vectors / np.maximum(length, 1e-12)
    return float(directions.std(axis=0).mean() * np.sqrt(vectors.shape[1]))


def effective_rank(vectors: NDArray[np.floating]) -> float:
    """In how many dimensions the vectors lie: exp of the entropy of their singular values, each as
    a share of the sum (Garrido et al., RankMe, ICML 2023). From 1 to the smaller of n and D."""
    values = np.linalg.svd(vectors.astype(np.float32), compute_uv=False)
    share = values / max(float(values.sum()), 1e-12) + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def health(vectors: Mapping[str, NDArray[np.floating]]) -> dict[str, float]:
    """`spread/NAME` and `rank/NAME` of each kind of vectors."""
    found = {}
    for name, x in vectors.items():
        found[f"spread/{name}"], found[f"rank/{name}"] = spread(x), effective_rank(x)
    return found


def collapsed(found: Mapping[str, float]) -> list[str]:
    """Of what `health` found, a line for each kind that has collapsed."""
    names = [key.removeprefix("spread/") for key in found if key.startswith("spread/")]
    figures = [(name, found[f"spread/{name}"], found[f"rank/{name}"]) for name in names]
    return [
        f"the {name} representations have collapsed: spread {width:.2g} (healthy: near 1), "
        f"effective rank {rank:.2g}"
        for name, width, rank in figures
        if width < _LEAST_SPREAD or rank < _LEAST_RANK
    ]
