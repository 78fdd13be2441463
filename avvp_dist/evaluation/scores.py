"""Scores of audio-visual video parsing: the official HAN evaluator's numbers, and grounding AUC.

The evaluator is that of Tian et al., "Unified Multisensory Perception: Weakly-Supervised
Audio-Visual Video Parsing" (ECCV 2020); its scores are equal to ours to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import DataError

LEVELS = ("segment", "event")
STREAM_SCORES = ("audio", "visual", "av", "type_av", "event_av")
RULES = ("video", "modality")
THRESHOLD = 0.5
"""Probability at which the official evaluator decides an event."""
SELECTION = "segment_type_av"
"""Score of validation clips by which models and settings are chosen, as in the official codes."""
_BINS = 2**16
"""Levels at which cosines are counted."""

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Threshold = float | NDArray[np.floating]
Counts = NDArray[np.int64]
Mean = TypeVar("Mean", float, Floats)


def decide(
    frame_prob: NDArray[np.float32],
    video_prob: NDArray[np.float32],
    modality_prob: NDArray[np.float32] | None = None,
    *,
    rule: str = "video",
    threshold: Threshold = THRESHOLD,
) -> Mask:
    """Decide which events occur in which snippets, bool `[N, T, 2, C]`.

    An event occurs where its snippet probability and its clip probability reach the threshold,
    compared in float32. Scores under different rules are not comparable.

    Args:
        frame_prob: probability in each snippet, `[N, T, 2, C]`.
        video_prob: probability in the clip, `[N, C]`; it counts under the rule `video` (HAN,
            MM-Pyramid, VALOR).
        modality_prob: probability in the clip by modality, `[N, 2, C]`; it counts under the rule
            `modality` (MA, JoMoLD).
        threshold: one number, or one per modality and class, `[2, C]`.

    Raises:
        DataError: if the rule is unknown, or needs a `modality_prob` that is not given.
    """
    if rule not in RULES:
        raise DataError(f"rule '{rule}' is not one of {', '.join(RULES)}")
    if rule == "modality" and modality_prob is None:
        raise DataError("the rule 'modality' needs modality_prob [N, 2, C], which is not given")
    clip_prob = np.asarray(video_prob)[:, None] if rule == "video" else np.asarray(modality_prob)
    limit = np.asarray(threshold, np.float32)
    frames: Mask = np.asarray(frame_prob, np.float32) >= limit
    clips: Mask = clip_prob.astype(np.float32) >= limit
    return frames & clips[:, None]


def runs(mask: Mask) -> list[tuple[int, int]]:
    """Start and length of each run of True in a mask `[T]`: the events of a class."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return [(int(start), int(end - start)) for start, end in edges.reshape(-1, 2)]


def score(predicted: Mask, truth: Mask) -> dict[str, float]:
    """Compute the ten official F-scores in percent, from bool `[N, T, 2, C]` (audio, visual).

    Keys are `LEVELS` x `STREAM_SCORES`: 'segment_audio' ... 'event_event_av'. `av` counts events
    in both modalities at once, `type_av` is the mean of audio, visual and av, and `event_av` pools
    a clip's audio and visual events. At event level an event is a maximal run of positive snippets,
    and it is a hit if a predicted one has an IoU of 0.5 or more with it.

    Raises:
        DataError: if the shapes differ, are not `[N, T, 2, C]`, or N is 0.
    """
    clip_scores = _clip_scores(predicted, truth)
    return _in_percent({key: float(np.mean(values)) for key, values in clip_scores.items()})


def score_clips(predicted: Mask, truth: Mask) -> dict[str, Floats]:
    """Compute what each clip adds to the official F-scores, in percent, `[N]`.

    Their means over clips are those of `score`, but for rounding; keys, shapes and errors are too.
    """
    return _in_percent(_clip_scores(predicted, truth))


def score_one_modality(predicted: Mask, truth: Mask) -> dict[str, float]:
    """Compute F in percent of events that are only heard or only seen; no official score.

    A snippet's event counts where it occurs in one modality and not in the other. Keys are
    'segment_audible_only', 'segment_visible_only', and likewise for 'event'. Shapes and errors are
    those of `score`.
    """
    alone = [mask & ~mask[:, :, ::-1] for mask in (np.asarray(predicted), np.asarray(truth))]
    scores = _clip_scores(*alone)
    return {
        f"{level}_{name}": 100 * float(np.mean(scores[f"{level}_{stream}"]))
        for level in LEVELS
        for stream, name in (("audio", "audible_only"), ("visual", "visible_only"))
    }


class Summary(NamedTuple):
    """One score over several seeds of training, in percent."""

    mean: float
    standard_deviation: float
    """Sample standard deviation between the seeds (n - 1); nan for one seed."""
    low: float
    high: float
    """Ends of the 95 % interval of the mean over the choice of clips."""


def summarise(predictions: Sequence[Mask], truth: Mask) -> dict[str, Summary]:
    """Summarise each key of `score` over predictions of the same clips by several seeds."""
    scores = [score(predicted, truth) for predicted in predictions]
    intervals = bootstrap(predictions, truth)
    summary = {}
    for key, interval in intervals.items():
        values = [one[key] for one in scores]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        summary[key] = Summary(float(np.mean(values)), spread, *interval)
    return summary


def bootstrap(
    predictions: Sequence[Mask], truth: Mask, *, samples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Compute the 95 % bootstrap interval (percentile) of each score, over resampled clips.

    For several predictions it is the interval of the mean of their scores. It covers the choice of
    test clips, not the seed of training. Shapes, keys and errors are those of `score`.
    """
    every = [_clip_scores(predicted, truth) for predicted in predictions]
    clip_scores = {key: np.mean([one[key] for one in every], axis=0) for key in every[0]}
    clips = len(truth)
    # A resampled mean depends only on how often each clip is in the sample: [samples, N].
    times = np.random.default_rng(seed).multinomial(clips, [1 / clips] * clips, size=samples)
    means = {key: times @ values / clips for key, values in clip_scores.items()}
    intervals = {}
    for key, resampled in _in_percent(means).items():
        low, high = np.percentile(resampled, (2.5, 97.5))
        intervals[key] = (float(low), float(high))
    return intervals


def score_per_class(predicted: Mask, truth: Mask) -> dict[str, Floats]:
    """Compute F of each class in percent, `[C]`, counted over all clips.

    Keys are 'segment_audio', 'segment_visual', 'segment_av', and likewise for 'event'. F is nan if
    a class occurs neither in the truth nor in the prediction. Shapes and errors are those of
    `score`.
    """
    scores = {}
    for level, counts in _counts(predicted, truth).items():
        hits, marks = (count.sum(axis=0) for count in counts)
        f = np.divide(2.0 * hits, marks, out=np.full(marks.shape, np.nan), where=marks > 0)
        for stream, values in zip(STREAM_SCORES[:3], 100 * f, strict=True):
            scores[f"{level}_{stream}"] = values
    return scores


def mean_per_class(predictions: Sequence[Mask], truth: Mask) -> dict[str, Floats]:
    """Average `score_per_class` over predictions, leaving out those in which a class has no F."""
    scores = [score_per_class(predicted, truth) for predicted in predictions]
    means = {}
    for key in scores[0]:
        values = np.stack([one[key] for one in scores])
        known = ~np.isnan(values)
        total, number = np.where(known, values, 0).sum(0), known.sum(0)
        means[key] = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return means


def grounding_auc(similarity: NDArray[np.floating], same: Mask, valid: Mask) -> float:
    """Area under the ROC curve of pair similarity against 'same component', all `[N, T, T]`.

    It is the probability, over all `valid` pairs, that a pair within a component is more similar
    than a pair across components; ties count half. It is nan if only one kind of pair is present,
    or if a similarity is nan.
    """
    values, positive = similarity[valid], same[valid]
    if np.isnan(values).any():
        return float("nan")
    levels, level = np.unique(values, return_inverse=True)
    return auc_of_counts(_by_kind(level, positive, len(levels)))


def similarity_counts(similarity: NDArray[np.floating], same: Mask, valid: Mask) -> Counts:
    """Number of `valid` pairs within and across components at each level of cosine, `[2, levels]`.

    Levels are bins of equal width between -1 and 1, so pairs in one bin are ties. Counts of several
    arrays may be added. Arguments are those of `grounding_auc`, without nan.
    """
    level = ((similarity[valid] + 1) * (_BINS / 2)).astype(np.int64).clip(0, _BINS - 1)
    return _by_kind(level, same[valid], _BINS)


def auc_of_counts(counts: Counts) -> float:
    """Area under the ROC curve from the counts of positives and negatives, `[2, levels]`.

    Levels ascend, and ties count half. It is nan if there are no positives or no negatives.
    """
    positives, negatives = counts.sum(1, dtype=np.float64)
    if not positives or not negatives:
        return float("nan")
    below = np.cumsum(counts[1]) - counts[1] / 2
    return float((counts[0] * below).sum() / (positives * negatives))


def _by_kind(level: NDArray[np.integer], positive: Mask, levels: int) -> Counts:
    kinds = (level[positive], level[~positive])
    return np.stack([np.bincount(kind, minlength=levels) for kind in kinds])


def _in_percent(means: dict[str, Mean]) -> dict[str, Mean]:
    """Turn means over clips into percentages, with type_av between av and event_av."""
    percent = {}
    for level in LEVELS:
        audio, visual, av, event_av = (
            100 * means[f"{level}_{stream}"] for stream in ("audio", "visual", "av", "event_av")
        )
        # In another order of addition the last bit differs from the official number.
        type_av = (av + audio + visual) / 3
        for stream, value in zip(
            STREAM_SCORES, (audio, visual, av, type_av, event_av), strict=True
        ):
            percent[f"{level}_{stream}"] = value
    return percent


def _clip_scores(predicted: Mask, truth: Mask) -> dict[str, Floats]:
    """F of each clip, `[N]` from 0 to 1, by level and by audio, visual, av and event_av."""
    scores = {}
    for level, (hits, marks) in _counts(predicted, truth).items():
        streams = _class_mean_f(hits, marks)
        for column, stream in enumerate(("audio", "visual", "av")):
            scores[f"{level}_{stream}"] = streams[:, column]
        pooled = _class_mean_f(hits[:, :2].sum(axis=1), marks[:, :2].sum(axis=1))
        scores[f"{level}_event_av"] = pooled
    return scores


def _class_mean_f(hits: Counts, marks: Counts) -> Floats:
    """Mean of F = 2 hits / marks over the active classes (last axis); 1 if none is active."""
    active = marks > 0
    f = np.divide(2.0 * hits, marks, out=np.zeros(marks.shape), where=active)
    # cumsum adds in class order, as the official loop does; sum() would add pairwise.
    total, number = np.cumsum(f, axis=-1)[..., -1], active.sum(axis=-1)
    mean: Floats = np.divide(total, number, out=np.ones(number.shape), where=number > 0)
    return mean


def _counts(predicted: Mask, truth: Mask) -> dict[str, tuple[Counts, Counts]]:
    """Hits, and marks in prediction plus truth, per level, `[N, 3, C]` (audio, visual, av).

    F = 2 TP / (2 TP + FP + FN) is 2 hits / marks, because TP + FP marks are predicted and TP + FN
    are true.
    """
    predicted, truth = np.asarray(predicted, np.bool_), np.asarray(truth, np.bool_)
    shape = truth.shape
    if predicted.shape != shape or len(shape) != 4 or shape[2] != 2 or not shape[0]:
        raise DataError(
            f"cannot score a prediction of shape {list(predicted.shape)} "
            f"against a truth of shape {list(shape)}",
            remedy="Both are [N, T, 2, C], for the same N >= 1 clips in the same order",
        )
    predicted, truth = (
        np.concatenate([mask, mask.all(axis=2, keepdims=True)], axis=2)
        for mask in (predicted, truth)
    )
    both = predicted & truth
    # A maximal run of `both` is where exactly one predicted and one true event meet, and as runs
    # lie apart, no event can have IoU >= 0.5 with two others: matches are one to one.
    shared = _run_length(both)
    union = _run_length(predicted) + _run_length(truth) - shared
    matched = _onset(both) & (2 * shared >= union)
    events = _onset(predicted).sum(axis=1) + _onset(truth).sum(axis=1)
    return {
        "segment": (both.sum(axis=1), predicted.sum(axis=1) + truth.sum(axis=1)),
        "event": (matched.sum(axis=1), events),
    }


def _onset(mask: Mask) -> Mask:
    """First snippet of each run along axis 1."""
    onset: Mask = mask.copy()
    onset[:, 1:] &= ~mask[:, :-1]
    return onset


def _run_length(mask: Mask) -> Counts:
    """Length of the run along axis 1 in which each snippet lies; 0 outside of runs."""
    before, after = mask.astype(np.int64), mask.astype(np.int64)
    for t in range(1, mask.shape[1]):
        before[:, t] *= 1 + before[:, t - 1]
        after[:, -1 - t] *= 1 + after[:, -t]
    return before + after - mask
