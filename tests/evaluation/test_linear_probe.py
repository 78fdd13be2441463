"""The linear probe: a ridge regression as in a textbook, and what it finds in planted labels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from avvp_dist.evaluation import linear_probe as module
from avvp_dist.evaluation.linear_probe import (
    FOLDS,
    average_precision,
    linear_probe,
    probed_classes,
)

ROWS, CLASSES = 200, 4
FOLD_OF = np.arange(ROWS) % FOLDS


def planted(dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Features `[n, D]`, and labels that are signs of some of them."""
    x = np.random.default_rng(dim).normal(size=(ROWS, dim))
    return x, x[:, :CLASSES] > 0.8


def ridge(x: np.ndarray, y: np.ndarray, queries: np.ndarray, penalty: float) -> np.ndarray:
    """Least squares of differences from the mean, with a row for the penalty of each feature."""
    penalties = np.sqrt(penalty * len(x)) * np.eye(x.shape[1])
    targets = np.concatenate([y - y.mean(0), np.zeros((x.shape[1], y.shape[1]))])
    weights = np.linalg.lstsq(np.concatenate([x, penalties]), targets, rcond=None)[0]
    return np.asarray(queries @ weights + y.mean(0))


def precision_by_loop(scores: np.ndarray, positive: np.ndarray) -> float:
    found = [positive[scores >= score].mean() for score in scores[positive]]
    return float(np.mean(found))


@pytest.mark.parametrize("dim", [6, 210])
def test_it_is_cross_validated_ridge_regression(dim: int) -> None:
    raw, labels = planted(dim)
    x = (raw - raw.mean(0)) / raw.std(0)
    y, scores = labels.astype(float), np.zeros(labels.shape)
    for fold in range(FOLDS):
        test, chosen_on = fold == FOLD_OF, (fold + 1) % FOLDS == FOLD_OF
        rest = ~test & ~chosen_on
        errors = {
            penalty: ((ridge(x[rest], y[rest], x[chosen_on], penalty) - y[chosen_on]) ** 2).sum()
            for penalty in module.PENALTIES
        }
        scores[test] = ridge(x[~test], y[~test], x[test], min(errors, key=lambda p: errors[p]))
    expected = [precision_by_loop(scores[:, c], labels[:, c]) for c in range(CLASSES)]
    assert linear_probe(raw, labels, FOLD_OF) == pytest.approx(np.mean(expected), abs=1e-9)


def test_labels_that_can_be_read_are_found_and_shuffled_ones_are_not() -> None:
    x, labels = planted(6)
    assert linear_probe(x, labels, FOLD_OF) > 0.95
    shuffled = np.random.default_rng(1).permutation(labels)
    assert linear_probe(x, shuffled, FOLD_OF) == pytest.approx(labels.mean(), abs=0.06)


def test_rows_of_equal_score_have_no_order() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 5, 40).astype(float), rng.random(40) > 0.5
    order = rng.permutation(40)
    found = average_precision(scores, positive)
    assert found == pytest.approx(precision_by_loop(scores, positive))
    assert found == pytest.approx(average_precision(scores[order], positive[order]))
    assert average_precision(np.zeros(40), positive) == pytest.approx(positive.mean())
    assert math.isnan(average_precision(scores, np.zeros(40, bool)))


def test_classes_of_too_few_folds_are_not_judged() -> None:
    labels = np.zeros((ROWS, 4), bool)
    labels[[0, 1, 2], 0] = True  # three folds
    labels[[0, 1, 5, 6], 1] = True  # two folds
    labels[:, 2] = True
    assert probed_classes(labels, FOLD_OF).tolist() == [True, False, False, False]
    x, _ = planted(6)
    assert math.isnan(linear_probe(x, labels[:, 1:], FOLD_OF))


def test_constant_features_and_empty_folds_do_no_harm() -> None:
    x, labels = planted(6)
    expected = linear_probe(x, labels, FOLD_OF)
    padded = np.hstack([x, np.full((ROWS, 1), 0.1), np.zeros((ROWS, 1))])
    assert linear_probe(padded, labels, FOLD_OF) == pytest.approx(expected)
    assert linear_probe(x, labels, FOLD_OF % 4) > 0.9
    flat = linear_probe(np.ones((ROWS, 3)), labels, FOLD_OF)
    assert flat < 0.4
