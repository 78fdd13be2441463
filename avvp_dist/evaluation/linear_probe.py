"""A linear probe: how much of some labels a linear model can read from vectors.

One ridge regression for each class, in closed form, is fitted and judged by cross-validation. The
score is the mean over classes of average precision, the area under the precision-recall curve.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avvp_dist.evaluation.scores import Mask

FOLDS = 5
PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Ridge penalties that are tried, for standardised features and the mean squared error."""
_MINIMUM_FOLDS = 3
"""Folds in which a class has to occur, so that all fits of its fold know it."""

Floats = NDArray[np.float64]


def probed_classes(labels: Mask, folds: NDArray[np.integer]) -> Mask:
    """Classes that a probe can judge, `[C]`: they occur in 3 folds or more, and not in every row.

    Args:
        labels: classes of each row `[n, C]`.
        folds: the fold of each row `[n]`, from 0 to `FOLDS` - 1.
    """
    present = [labels[folds == fold].any(0) for fold in range(FOLDS)]
    judged: Mask = (np.sum(present, 0) >= _MINIMUM_FOLDS) & ~labels.all(0)
    return judged


def linear_probe(vectors: NDArray[np.floating], labels: Mask, folds: NDArray[np.integer]) -> float:
    """Mean average precision of the classes that can be judged; nan if there are none.

    A row is scored by a model of the other folds. Its penalty is the one of `PENALTIES` with the
    smallest squared error on the next fold, for a model of the remaining ones. Features are
    standardised over all rows.

    Args:
        vectors: features `[n, D]`, finite.
        labels: classes of each row `[n, C]`.
        folds: the fold of each row `[n]`, from 0 to `FOLDS` - 1. Rows of one clip share a fold.
    """
    labels = labels[:, probed_classes(labels, folds)]
    if not labels.shape[1]:
        return float("nan")
    x = _standardised(vectors.astype(np.float64))
    if x.shape[1] > len(x):  # a rotation of the features leaves the regression as it is
        _, rotated = np.linalg.qr(x.T)
        x = rotated.T
    rows = [np.flatnonzero(folds == fold) for fold in range(FOLDS)]
    y, scores = labels.astype(np.float64), np.zeros(labels.shape)
    sums = [_Sums.of(x[part], y[part]) for part in rows]
    for fold, test in enumerate(rows):
        second, *others = [(fold + step) % FOLDS for step in range(1, FOLDS)]
        rest, judge = functools.reduce(operator.add, [sums[one] for one in others]), rows[second]
        errors = [((_ridge(rest, one, x[judge]) - y[judge]) ** 2).sum() for one in PENALTIES]
        penalty = PENALTIES[int(np.argmin(errors))]
        scores[test] = _ridge(rest + sums[second], penalty, x[test])
    columns = zip(scores.T, labels.T, strict=True)
    return float(np.mean([average_precision(*column) for column in columns]))


def average_precision(scores: NDArray[np.floating], positive: Mask) -> float:
    """Mean over the positives of the precision at their score; nan without positives.

    Rows with equal scores count as one step of the curve, so their order does not matter.

    Args:
        scores: score of each row `[n]`; higher is more certain.
        positive: rows that are positives `[n]`.
    """
    if not positive.any():
        return float("nan")
    levels, level = np.unique(-scores, return_inverse=True)
    hits = np.bincount(level, positive, len(levels))
    precision = np.cumsum(hits) / np.cumsum(np.bincount(level, minlength=len(levels)))
    return float((hits * precision).sum() / hits.sum())


@dataclass(frozen=True)
class _Sums:
    """Sums over rows of features `x [n, D]` and labels `y [n, C]`, all that a regression needs."""

    rows: int
    x: Floats
    y: Floats
    xx: Floats
    """`[D, D]`."""
    xy: Floats
    """`[D, C]`."""

    @classmethod
    def of(cls, x: Floats, y: Floats) -> _Sums:
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y)

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.rows + other.rows,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
        )


def _ridge(sums: _Sums, penalty: float, queries: Floats) -> Floats:
    """Predictions `[m, C]` for `queries [m, D]` of a ridge regression on the rows of `sums`.

    It predicts differences from the mean label.
    """
    mean = sums.y / sums.rows
    ridged = sums.xx + penalty * sums.rows * np.eye(len(sums.xx))
    return np.asarray(queries @ np.linalg.solve(ridged, sums.xy - np.outer(sums.x, mean)) + mean)


def _standardised(x: Floats) -> Floats:
    """Features of mean 0 and standard deviation 1, or 0 where one is constant."""
    deviation = x.std(0)
    deviation = np.where(deviation > 1e-6 * deviation.max(initial=0), deviation, np.inf)
    return np.asarray((x - x.mean(0)) / deviation)
