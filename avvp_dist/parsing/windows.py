"""Windows of a clip, and the timeline that their predictions make together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.evaluation.events import MODALITIES, events_in
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.evaluation.scores import Threshold
from avvp_dist.features.description import Description
from avvp_dist.parsing.timeline import Layers, ParserModel, Rows, Timeline
from avvp_dist.shards.schema import AUDIO


class Decision(NamedTuple):
    """The decision which events occur; see `evaluation.scores.decide`."""

    rule: str
    threshold: Threshold


def make_timeline(
    windows: Predictions,
    seconds: int,
    classes: Sequence[str],
    model: ParserModel,
    decision: Decision,
    missing: Mapping[str, str],
) -> Timeline:
    """Join the predictions of a clip's windows into its timeline.

    The probabilities of a second are the means over the windows that hold it. The rule is applied
    to these, second by second.

    Args:
        windows: predictions of the W windows that begin at `window_starts`, each with the clip's
            id. The window of a clip of fewer than T seconds is padded.
        seconds: N, the length of the clip.
        missing: modalities that the clip lacks, and why.
    """
    assert windows.modality_prob is not None
    snippets = windows.frame_prob.shape[1]
    frame, video, modality = (
        average_windows(values, seconds)
        for values in (
            windows.frame_prob,
            np.repeat(windows.video_prob[:, None], snippets, 1),
            np.repeat(windows.modality_prob[:, None], snippets, 1),
        )
    )
    # Each second is decided as a clip of its own.
    each = Predictions(windows.ids[:1] * seconds, frame[:, None], video, modality)
    occurs = each.decided(decision.rule, decision.threshold)[:, 0]
    occurs[:, [name in missing for name in MODALITIES]] = False
    thresholds = np.broadcast_to(np.asarray(decision.threshold), (2, len(classes)))
    return Timeline(
        id=windows.ids[0],
        seconds=seconds,
        model=model,
        rule=decision.rule,
        thresholds=_rows(thresholds),
        classes=tuple(classes),
        missing=dict(missing),
        events=tuple(events_in(occurs, frame, classes)),
        frame_prob=_layers(frame),
        video_prob=_rows(video) if decision.rule == "video" else None,
        modality_prob=_layers(modality) if decision.rule == "modality" else None,
    )


def window_starts(seconds: int, snippets: int) -> list[int]:
    """First seconds of the windows of T = `snippets` seconds that cover a clip of N `seconds`.

    They follow each other from 0, and the last ends at N. A clip of fewer than T seconds has one.
    """
    return [*range(0, seconds - snippets, snippets), max(0, seconds - snippets)]


def cut_windows(streams: Mapping[str, NDArray[np.float32]], snippets: int) -> dict[str, Tensor]:
    """Cut features `[N, D]` of a clip into windows `[W, T, D]`; zeros end a short one."""
    cut = {}
    for name, rows in streams.items():
        padded = np.pad(rows, ((0, max(0, snippets - len(rows))), (0, 0)))
        starts = window_starts(len(rows), snippets)
        stacked = np.stack([padded[start : start + snippets] for start in starts])
        cut[name] = torch.from_numpy(stacked)
    return cut


def rounded(streams: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Features of a file rounded to float16, as those are that models are trained on."""
    return {name: rows.astype(np.float16).astype(np.float32) for name, rows in streams.items()}


def missing_modalities(made: Description) -> dict[str, str]:
    """Modalities that a file lacks, and why."""
    visual = [name for name in made.streams if name != AUDIO]
    missing = {}
    if AUDIO in made.empty:
        missing["audio"] = "the file has no sound"
    if set(visual) <= set(made.empty):
        missing["visual"] = "the file has no pictures"
    return missing


def average_windows(values: NDArray[np.float32], seconds: int) -> NDArray[np.float32]:
    """Average the `values [W, T, ...]` of a clip's windows by second, `[N, ...]`."""
    snippets = values.shape[1]
    total = np.zeros((max(seconds, snippets), *values.shape[2:]))
    count = np.zeros(len(total))
    for start, window in zip(window_starts(seconds, snippets), values, strict=True):
        total[start : start + snippets] += window
        count[start : start + snippets] += 1
    means = total / count.reshape(-1, *(1 for _ in values.shape[2:]))
    return means[:seconds].astype(np.float32)


def _number(value: np.floating) -> float:
    """A float with the fewest digits that tell the value from others of its type."""
    return float(str(value))


def _rows(values: NDArray[np.floating]) -> Rows:
    return tuple(tuple(map(_number, row)) for row in values)


def _layers(values: NDArray[np.floating]) -> Layers:
    return tuple(map(_rows, values))
