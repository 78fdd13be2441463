"""Separation of classes: whether snippets of one class are nearer than those of different ones.

Two snippets are of the same class if they share one, and of different classes if each has one and
they share none. Snippets without a class do not count. An AUC is the probability that a pair of the
same class has a higher cosine than a pair of different classes; ties count half.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from avvp_dist.evaluation.scores import (
    Mask,
    auc_of_counts,
    grounding_auc,
    similarity_counts,
)

_ROWS_AT_ONCE = 512


class Separation(NamedTuple):
    """Separation of classes within clips; nan without the pairs that a number needs."""

    auc: float
    """AUC of the cosine, over the pairs of all clips."""
    different: float
    """Mean cosine of the pairs of different classes."""


def separation_within(vectors: NDArray[np.float32], classes: Mask) -> Separation:
    """Separation of the snippets of a clip, over all clips.

    Args:
        vectors: unit vectors `[N, T, D]`.
        classes: classes of each snippet `[N, T, C]`.
    """
    cosines = vectors @ vectors.transpose(0, 2, 1)
    same, pairs = _pairs(classes, classes)
    pairs &= np.triu(np.ones(pairs.shape[1:], bool), 1)
    different = cosines[pairs & ~same]
    mean = float(different.mean(dtype=np.float64)) if len(different) else float("nan")
    return Separation(grounding_auc(cosines, same, pairs), mean)


def auc_across(vectors: NDArray[np.float32], classes: Mask, clips: NDArray[np.integer]) -> float:
    """AUC of the cosine over pairs of snippets of different clips; nan without both kinds of pairs.

    Cosines are counted in bins, as those of many held-out clips are (`similarity_counts`).

    Args:
        vectors: unit vectors `[n, D]`, finite.
        classes: classes of each `[n, C]`.
        clips: the clip of each `[n]`.
    """
    known = classes.any(1)
    vectors, classes, clips = vectors[known], classes[known], clips[known]
    counts = np.zeros((2, 1), np.int64)
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        same, pairs = _pairs(classes[rows], classes)
        pairs &= clips[rows, None] != clips
        counts = counts + similarity_counts(vectors[rows] @ vectors.T, same, pairs)
    return auc_of_counts(counts)


def _pairs(one: Mask, other: Mask) -> tuple[Mask, Mask]:
    """Pairs that share a class, and all pairs with classes, `[..., n, m]` each.

    Args:
        one: classes `[..., n, C]`.
        other: classes `[..., m, C]`.
    """
    shared = one.astype(np.float32) @ other.astype(np.float32).swapaxes(-1, -2)
    known, others_known = np.asarray(one.any(-1)), np.asarray(other.any(-1))
    return shared > 0, known[..., :, None] & others_known[..., None, :]
