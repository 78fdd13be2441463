"""Collapse of representations: two figures of vectors `[n, D]` that show it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_MINIMUM_SPREAD, _MINIMUM_RANK = 0.05, 2.0


def spread(vectors: NDArray[np.floating]) -> float:
    """Standard deviation of the unit vectors in each dimension, averaged, times sqrt(D).

    1 for directions that are evenly spread, 0 for a single one (Chen & He, SimSiam, CVPR 2021).
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = vectors / np.maximum(length, 1e-12)
    return float(directions.std(axis=0).mean() * np.sqrt(vectors.shape[1]))


def effective_rank(vectors: NDArray[np.floating]) -> float:
    """Number of dimensions that the vectors fill, from 1 to the smaller of n and D.

    The exponential of the entropy of their singular values, each as a fraction of the sum (Garrido
    et al., RankMe, ICML 2023).
    """
    values = np.linalg.svd(vectors.astype(np.float32), compute_uv=False)
    fraction = values / max(float(values.sum()), 1e-12) + 1e-7
    return float(np.exp(-(fraction * np.log(fraction)).sum()))


def spread_and_rank(vectors: Mapping[str, NDArray[np.floating]]) -> dict[str, float]:
    """`spread_NAME` and `rank_NAME` of each kind of vectors."""
    figures = {}
    for name, x in vectors.items():
        figures[f"spread_{name}"], figures[f"rank_{name}"] = spread(x), effective_rank(x)
    return figures


def collapsed(values: Mapping[str, float]) -> list[str]:
    """A line for each kind of vectors that has collapsed, by the result of `spread_and_rank`."""
    names = [key.removeprefix("spread_") for key in values if key.startswith("spread_")]
    figures = [(name, values[f"spread_{name}"], values[f"rank_{name}"]) for name in names]
    return [
        f"the {name} representations have collapsed: spread {width:.2g} (healthy: near 1), "
        f"effective rank {rank:.2g}"
        for name, width, rank in figures
        if width < _MINIMUM_SPREAD or rank < _MINIMUM_RANK
    ]
