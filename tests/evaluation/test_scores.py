"""Scores: against the official evaluator's numbers, and against the metric written as loops."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from avvp_dist.annotations.llp import Annotations, read_annotations
from avvp_dist.errors import DataError
from avvp_dist.evaluation.scores import (
    LEVELS,
    STREAM_SCORES,
    auc_of_counts,
    bootstrap,
    decide,
    grounding_auc,
    mean_per_class,
    runs,
    score,
    score_clips,
    score_one_modality,
    score_per_class,
    similarity_counts,
    summarise,
)

Mask = NDArray[np.bool_]


# The metric once more, as plain loops over clips, classes and events.


def spans(row: list[bool]) -> list[set[int]]:
    found: list[set[int]] = []
    for second, on in enumerate(row):
        if on and second and row[second - 1]:
            found[-1].add(second)
        elif on:
            found.append({second})
    return found


def count(level: str, predicted: list[bool], truth: list[bool]) -> tuple[int, int, int]:
    """TP, FP, FN of one clip, class and stream."""
    if level == "segment":
        pairs = list(zip(predicted, truth, strict=True))
        return pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True))
    ours, theirs = spans(predicted), spans(truth)

    def matches(event: set[int], others: list[set[int]]) -> bool:
        return any(len(event & other) / len(event | other) >= 0.5 for other in others)

    found = sum(matches(event, theirs) for event in ours)
    missed = sum(not matches(event, ours) for event in theirs)
    return found, len(ours) - found, missed


def mean_f(counts: list[tuple[int, int, int]]) -> float:
    scores = [2 * tp / (2 * tp + (fn + fp)) for tp, fp, fn in counts if tp + fp + fn]
    total = 0.0
    for value in scores:
        total += value
    return total / len(scores) if scores else 1.0


def score_by_loops(predicted: Mask, truth: Mask) -> dict[str, float]:
    result: dict[str, float] = {}
    for level in LEVELS:
        clips: dict[str, list[float]] = {"audio": [], "visual": [], "av": [], "event_av": []}
        for ours, theirs in zip(predicted, truth, strict=True):
            streams = {
                stream: [
                    count(level, a[:, c].tolist(), b[:, c].tolist()) for c in range(a.shape[1])
                ]
                for stream, a, b in (
                    ("audio", ours[:, 0], theirs[:, 0]),
                    ("visual", ours[:, 1], theirs[:, 1]),
                    ("av", ours[:, 0] & ours[:, 1], theirs[:, 0] & theirs[:, 1]),
                )
            }
            streams["event_av"] = [
                (a[0] + v[0], a[1] + v[1], a[2] + v[2])
                for a, v in zip(streams["audio"], streams["visual"], strict=True)
            ]
            for stream, counts in streams.items():
                clips[stream].append(mean_f(counts))
        percent = {stream: 100 * float(np.mean(values)) for stream, values in clips.items()}
        percent["type_av"] = (percent["av"] + percent["audio"] + percent["visual"]) / 3
        result |= {f"{level}_{stream}": percent[stream] for stream in STREAM_SCORES}
    return result


@pytest.mark.parametrize("seed", range(12))
def test_score_equals_the_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (9, int(rng.integers(1, 12)), 2, int(rng.integers(1, 30)))
    truth = rng.random(shape) < rng.uniform(0, 0.9)
    # A prediction that resembles the truth, so that events are near IoU 0.5 on both sides.
    predicted = truth ^ (rng.random(shape) < rng.uniform(0, 0.4))
    truth[0], predicted[0] = False, False
    truth[1], predicted[1] = True, True
    truth[2], predicted[2] = False, True
    truth[3], predicted[3] = True, False
    assert score(predicted, truth) == score_by_loops(predicted, truth)
    by_clip = {key: float(values.mean()) for key, values in score_clips(predicted, truth).items()}
    assert by_clip == pytest.approx(score(predicted, truth))


def timeline(*spans: tuple[int, int], snippets: int = 10) -> Mask:
    """`[1, T, 2, 1]` with the same spans in both streams."""
    mask = np.zeros((1, snippets, 2, 1), dtype=bool)
    for onset, offset in spans:
        mask[0, onset:offset] = True
    return mask


@pytest.mark.parametrize(
    ("predicted", "truth", "f"),
    [
        ([(0, 5)], [(0, 10)], 100.0),  # IoU is exactly 0.5
        ([(0, 4)], [(0, 10)], 0.0),
        ([(0, 4), (5, 9)], [(0, 9)], 0.0),  # two halves of one event, neither reaches 0.5
        ([(0, 5), (6, 9)], [(0, 9)], 100 * 2 / 3),
        ([(2, 4)], [(2, 3), (6, 7)], 100 * 2 / 3),
        ([], [], 100.0),
        ([(0, 1)], [], 0.0),
    ],
)
def test_events_match_at_half_overlap(
    predicted: list[tuple[int, int]], truth: list[tuple[int, int]], f: float
) -> None:
    scores = score(timeline(*predicted), timeline(*truth))
    assert scores["event_audio"] == pytest.approx(f)
    assert scores["event_type_av"] == pytest.approx(f)


def test_decide_reaches_the_threshold_in_float32() -> None:
    frame = np.full((1, 2, 2, 2), 0.7, dtype=np.float32)
    frame[0, 1, 0, 0] = np.nextafter(np.float32(0.7), np.float32(0))
    video = np.array([[0.7, 0.6]], dtype=np.float32)
    chosen = decide(frame, video, threshold=0.7)
    assert chosen.dtype == np.bool_
    assert chosen[..., 0].tolist() == [[[True, True], [False, True]]]
    assert not chosen[..., 1].any()


def test_runs_are_the_events_of_a_class() -> None:
    assert runs(np.array([1, 1, 0, 1, 0, 0, 1], bool)) == [(0, 2), (3, 1), (6, 1)]
    assert runs(np.zeros(3, bool)) == [] and runs(np.ones(3, bool)) == [(0, 3)]


def test_scores_refuse_other_shapes() -> None:
    good = timeline((0, 1))
    for bad in (good[:, :5], good[:, :, :1], good[:0], good[0]):
        with pytest.raises(DataError, match=r"\[N, T, 2, C\]"):
            score(bad, good)
    with pytest.raises(DataError):
        score(good[:0], good[:0])


def test_score_per_class_pools_clips_and_leaves_absent_classes_nan() -> None:
    truth, predicted = np.zeros((2, 2, 10, 2, 3), dtype=bool)
    truth[0, :4, 0, 0] = True
    predicted[1, :2, 0, 0] = True
    predicted[0, :4, 0, 0] = True
    predicted[1, :, 1, 2] = True
    per_class = score_per_class(predicted, truth)
    assert list(per_class) == [f"{lv}_{st}" for lv in LEVELS for st in ("audio", "visual", "av")]
    nan = math.nan
    np.testing.assert_allclose(per_class["segment_audio"], [80.0, nan, nan])
    np.testing.assert_allclose(per_class["event_audio"], [200 / 3, nan, nan])
    np.testing.assert_array_equal(per_class["segment_visual"], [nan, nan, 0.0])
    np.testing.assert_array_equal(per_class["event_av"], [nan, nan, nan])


def test_bootstrap_covers_the_score_and_repeats() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((80, 10, 2, 4)) < 0.3
    predicted = truth ^ (rng.random(truth.shape) < 0.2)
    scores, intervals = score(predicted, truth), bootstrap([predicted], truth, samples=400)
    assert list(intervals) == list(scores)
    assert all(low < scores[key] < high for key, (low, high) in intervals.items())
    assert intervals == bootstrap([predicted], truth, samples=400)
    assert intervals != bootstrap([predicted], truth, samples=400, seed=1)


def test_bootstrap_width_is_the_standard_error() -> None:
    # Half of the clips score 100, half 0: the mean of 400 has a standard error of 2.5 points.
    truth = np.ones((400, 2, 2, 1), dtype=bool)
    predicted = truth & (np.arange(400) % 2 == 0)[:, None, None, None]
    low, high = bootstrap([predicted], truth, samples=4000)["segment_type_av"]
    assert low == pytest.approx(50 - 1.96 * 2.5, abs=0.5)
    assert high == pytest.approx(50 + 1.96 * 2.5, abs=0.5)


def test_grounding_auc_equals_the_fraction_of_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    # Few levels, so that ties are common.
    similarity = rng.integers(0, 6, (4, 5, 5)) / 5
    same, valid = rng.random((2, 4, 5, 5)) < 0.6
    positive, negative = similarity[valid & same], similarity[valid & ~same]
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert grounding_auc(similarity, same, valid) == pytest.approx(np.mean(wins), abs=1e-12)
    assert grounding_auc(np.where(same, 1.0, 0.0), same, valid) == 1.0
    assert grounding_auc(np.zeros(same.shape), same, valid) == 0.5


def test_grounding_auc_is_nan_where_it_has_no_meaning() -> None:
    similarity, valid = np.zeros((1, 2, 2)), np.ones((1, 2, 2), dtype=bool)
    same = np.eye(2, dtype=bool)[None]
    assert math.isnan(grounding_auc(similarity, valid, valid))
    assert math.isnan(grounding_auc(similarity, ~valid, valid))
    assert math.isnan(grounding_auc(similarity, same, ~valid))
    assert math.isnan(grounding_auc(np.full((1, 2, 2), np.nan), same, valid))


@pytest.mark.parametrize("spread", [0.3, 0.02])
def test_counted_cosines_give_the_same_auc(spread: float) -> None:
    rng = np.random.default_rng(0)
    same, valid = rng.random((2, 300, 10, 10)) < [[[[0.3]]], [[[0.9]]]]
    cosines = 1 - np.abs(rng.normal(np.where(same, 1, 2) * spread, spread)).astype(np.float32)
    cosines[0, 0, :2] = (1 + 1e-6, -1 - 1e-6)  # as products of unit vectors may be
    halves = [
        similarity_counts(*(x[part] for x in (cosines, same, valid)))
        for part in (slice(100), slice(100, None))
    ]
    exact = grounding_auc(cosines, same, valid)
    assert 0.6 < exact < 0.9
    assert auc_of_counts(halves[0] + halves[1]) == pytest.approx(exact, abs=1e-5)


# What the official evaluator gives.


def every_snippet(weak: NDArray[np.float32], like: Mask) -> Mask:
    return np.broadcast_to(weak[:, None, None, :] > 0, like.shape)


PREDICTIONS: dict[str, Callable[[Annotations, Mask], Mask]] = {
    "predict nothing": lambda read, truth: np.zeros_like(truth),
    "predict everything": lambda read, truth: np.ones_like(truth),
    "weak labels on every snippet of both modalities": lambda read, truth: every_snippet(
        read.weak, truth
    ),
}


def official_prediction(row: dict[str, Any], read: Annotations, truth: Mask) -> Mask:
    if "prediction" in row:
        return PREDICTIONS[row["prediction"]](read, truth)
    rng = np.random.default_rng(row["seed"])
    frame = rng.random(truth.shape, dtype=np.float32)
    video = rng.random(read.weak.shape, dtype=np.float32)
    return decide(frame, video * np.float32(row["video_scale"]))


@pytest.mark.shared
def test_scores_equal_the_official_evaluator(shared: Path) -> None:
    rows = json.loads((shared / "llp" / "official_scores.json").read_text())["results"]
    assert len(rows) >= 10
    for row in rows:
        read = read_annotations(
            shared / "llp", row["split"], audio_version=row["audio_annotations"]
        )
        assert read.events is not None
        predicted = official_prediction(row, read, read.events)
        assert score(predicted, read.events) == row["scores"]


@pytest.mark.shared
def test_scoring_the_test_split_takes_well_under_two_seconds(shared: Path) -> None:
    truth = read_annotations(shared / "llp", "test").events
    assert truth is not None
    start = time.process_time()
    score(~truth, truth)
    assert time.process_time() - start < 1


REALMIX_FLOORS = {
    "nothing": "4.2 7.5 33.3 15.0 0.0  4.2 7.5 33.3 15.0 0.0",
    "weak": "53.0 49.7 32.1 44.9 53.6  45.1 38.5 23.1 35.5 44.5",
    "modality": "64.0 64.4 62.2 63.5 62.0  54.9 50.3 51.7 52.3 50.0",
}


@pytest.mark.shared
@pytest.mark.parametrize("kind", REALMIX_FLOORS)
def test_floors_of_realmix(shared: Path, kind: str) -> None:
    read = read_annotations(shared / "media" / "realmix", "test")
    assert read.events is not None
    predicted = {
        "nothing": np.zeros_like(read.events),
        "weak": every_snippet(read.weak, read.events),
        "modality": np.broadcast_to(read.events.any(axis=1, keepdims=True), read.events.shape),
    }[kind]
    printed = [f"{value:.1f}" for value in score(predicted, read.events).values()]
    assert printed == REALMIX_FLOORS[kind].split()


def test_rules_and_thresholds_decide_as_documented() -> None:
    rng = np.random.default_rng(3)
    frame = rng.random((4, 10, 2, 25), np.float32)
    video, modality = rng.random((4, 25), np.float32), rng.random((4, 2, 25), np.float32)
    limits = rng.random((2, 25), np.float32)
    by_video = decide(frame, video, threshold=limits)
    by_modality = decide(frame, video, modality, rule="modality", threshold=limits)
    for n, t, m, c in np.ndindex(frame.shape):
        snippet = frame[n, t, m, c] >= limits[m, c]
        assert by_video[n, t, m, c] == (snippet and video[n, c] >= limits[m, c])
        assert by_modality[n, t, m, c] == (snippet and modality[n, m, c] >= limits[m, c])


@pytest.mark.parametrize(("rule", "message"), [("modality", "modality_prob"), ("any", "'any'")])
def test_a_rule_that_cannot_be_applied_is_named(rule: str, message: str) -> None:
    frame, video = np.zeros((1, 10, 2, 25), np.float32), np.zeros((1, 25), np.float32)
    with pytest.raises(DataError, match=message):
        decide(frame, video, rule=rule)


def test_one_modality_scores_leave_out_what_is_heard_and_seen() -> None:
    truth = np.zeros((1, 10, 2, 25), bool)
    truth[0, :6, 0, 0] = truth[0, 4:, 1, 0] = True  # heard 0-6, seen 4-10, both 4-6
    predicted = truth.copy()
    predicted[0, 4:6] = False  # what is heard and seen does not matter
    assert score_one_modality(predicted, truth) == {
        "segment_audible_only": 100.0,
        "segment_visible_only": 100.0,
        "event_audible_only": 100.0,
        "event_visible_only": 100.0,
    }
    predicted[0, 0, 0, 0] = False
    assert score_one_modality(predicted, truth)["segment_audible_only"] == pytest.approx(600 / 7)


# Several seeds.


def seeds_of(truth: Mask, *wrong: float) -> list[Mask]:
    """Predictions of `truth`, each wrong in another fraction of it."""
    rng = np.random.default_rng(4)
    return [truth ^ (rng.random(truth.shape) < fraction) for fraction in wrong]


def test_a_summary_is_mean_and_sample_deviation_of_the_seeds_scores() -> None:
    truth = np.random.default_rng(4).random((40, 10, 2, 5)) < 0.3
    predictions = seeds_of(truth, 0.1, 0.2, 0.4)
    scores = [score(predicted, truth) for predicted in predictions]
    summary = summarise(predictions, truth)
    assert list(summary) == list(scores[0])
    for key, found in summary.items():
        values = [one[key] for one in scores]
        mean = sum(values) / 3
        assert found.mean == pytest.approx(mean)
        squares = sum((value - mean) ** 2 for value in values)
        assert found.standard_deviation == pytest.approx(math.sqrt(squares / 2))
        assert found.low < found.mean < found.high


def test_one_seed_has_no_deviation() -> None:
    truth = np.random.default_rng(4).random((40, 10, 2, 5)) < 0.3
    (predicted,) = seeds_of(truth, 0.2)
    summary, intervals = summarise([predicted], truth), bootstrap([predicted], truth)
    assert {key: one.mean for key, one in summary.items()} == score(predicted, truth)
    assert all(math.isnan(one.standard_deviation) for one in summary.values())
    assert {key: (one.low, one.high) for key, one in summary.items()} == intervals


def test_the_interval_is_over_clips_and_not_over_seeds() -> None:
    truth = np.random.default_rng(4).random((40, 10, 2, 5)) < 0.3
    (predicted,) = seeds_of(truth, 0.2)
    assert bootstrap([predicted, predicted], truth) == bootstrap([predicted], truth)
    # Where one seed is right the other is wrong: their mean is 50 whichever clips are drawn.
    truth = np.ones((40, 2, 2, 1), bool)
    even = truth & (np.arange(40) % 2 == 0)[:, None, None, None]
    low, high = bootstrap([even, ~even], truth)["segment_audio"]
    assert low == pytest.approx(50) and high == pytest.approx(50)


def test_the_mean_per_class_is_over_the_seeds_in_which_the_class_occurs() -> None:
    truth, first, second = np.zeros((3, 2, 10, 2, 3), bool)
    truth[0, :4, 0, 0] = first[0, :4, 0, 0] = second[0, 2:6, 0, 0] = True
    second[1, :, 0, 1] = True  # the first seed says nothing of class 1, and it is not there
    found = mean_per_class([first, second], truth)
    assert list(found) == list(score_per_class(first, truth))
    np.testing.assert_allclose(found["segment_audio"], [75.0, 0.0, math.nan])
    np.testing.assert_allclose(found["segment_visual"], [math.nan] * 3)
    for key, values in mean_per_class([second], truth).items():
        np.testing.assert_array_equal(values, score_per_class(second, truth)[key])
