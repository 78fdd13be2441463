"""Files of predictions, from our parsers or any other, validated and scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.annotations.alignment import align
from avvp_dist.annotations.llp import Annotations, read_annotations
from avvp_dist.commit import staged, write_json
from avvp_dist.errors import DataError, first_line
from avvp_dist.evaluation.scores import (
    LEVELS,
    STREAM_SCORES,
    Threshold,
    decide,
    score_one_modality,
    summarise,
)

LARGEST = {"frame_prob": 1.0, "video_prob": 2.0, "modality_prob": 1.0}
"""Maximum of each probability. HAN's pooling weights are a softmax over time times one over
modality: they sum to 1 for a modality and to 2 at most for the clip."""
ROUNDING = 1e-5
"""Excess over it that rounding explains."""


@dataclass(frozen=True)
class Predictions:
    """Probabilities of N clips, float32; the axis of size 2 is audio, visual."""

    ids: tuple[str, ...]
    frame_prob: NDArray[np.float32]
    """Probability in each snippet, `[N, T, 2, C]`."""
    video_prob: NDArray[np.float32]
    """Probability in the clip, `[N, C]`; with HAN's pooling it may exceed 1."""
    modality_prob: NDArray[np.float32] | None = None
    """Probability in the clip by modality, `[N, 2, C]`; None if unknown."""

    def save(self, path: Path) -> None:
        """Write an npz file with `filenames` and the arrays under their names."""
        arrays: dict[str, Any] = {"frame_prob": self.frame_prob, "video_prob": self.video_prob}
        if self.modality_prob is not None:
            arrays["modality_prob"] = self.modality_prob
        with staged(path) as temporary, temporary.open("wb") as file:
            np.savez(file, filenames=np.array(self.ids), **arrays)

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read a file in the format of `save`.

        Raises:
            DataError: if an array is missing, has another shape, or holds no probabilities.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except Exception as error:  # np.load raises many types for a file of another kind
            raise DataError(f"{path} is no whole npz file: {first_line(error)}") from None
        for name in ("filenames", "frame_prob", "video_prob"):
            if name not in arrays:
                raise DataError(f"{path} has no array {name}", remedy=f"It has {sorted(arrays)}")
        frame = arrays["frame_prob"]
        if frame.ndim != 4 or frame.shape[2] != 2:
            raise DataError(f"{path}: frame_prob is {list(frame.shape)}, expected [N, T, 2, C]")
        clips, _, _, classes = frame.shape
        expected = {
            "filenames": (clips,),
            "video_prob": (clips, classes),
            "modality_prob": (clips, 2, classes),
        }
        for name, shape in expected.items():
            if name in arrays and arrays[name].shape != shape:
                actual = list(arrays[name].shape)
                raise DataError(f"{path}: {name} is {actual}, expected {list(shape)}")
        ids = tuple(str(name) for name in arrays["filenames"])
        for name in ("frame_prob", "video_prob", "modality_prob"):
            if name in arrays:
                arrays[name] = _probabilities(path, name, arrays[name], ids)
        return cls(ids, frame, arrays["video_prob"], arrays.get("modality_prob"))

    def decided(self, rule: str, threshold: Threshold) -> NDArray[np.bool_]:
        """Decide which events occur, bool `[N, T, 2, C]`, see `decide`."""
        return decide(
            self.frame_prob, self.video_prob, self.modality_prob, rule=rule, threshold=threshold
        )

    def ordered(self, annotations: Annotations, path: Path) -> Predictions:
        """Select the predictions of the annotated clips, in the order of the csv file.

        Args:
            path: file of the predictions, named in errors.

        Raises:
            DataError: if an annotated clip is missing or predicted twice, or T or C differ.
        """
        assert annotations.events is not None
        rows = align(annotations.ids, self.ids, place=path, what=f"{annotations.split} clips")
        if self.frame_prob.shape[1:] != annotations.events.shape[1:]:
            raise DataError(
                f"{path}: frame_prob is [N, T, 2, C] with T, 2, C = "
                f"{list(self.frame_prob.shape[1:])}, the annotations have "
                f"{list(annotations.events.shape[1:])}"
            )
        modality = None if self.modality_prob is None else self.modality_prob[rows]
        return Predictions(annotations.ids, self.frame_prob[rows], self.video_prob[rows], modality)


@dataclass(frozen=True)
class ScoreReport:
    """Scores, and everything that makes them comparable with others or not."""

    split: str
    audio_annotations: str
    """Version of the audio annotations."""
    rule: str
    threshold: float | list[list[float]]
    """One threshold, or one per modality and class, `[2, C]`; see `decide`."""
    clips: int
    """Number of scored clips."""
    annotation_faults: Mapping[str, int]
    """Number of faults of each kind in the annotation files."""
    seeds: int
    """Number of prediction files."""
    scores: Mapping[str, float]
    """Official scores in percent, means over the seeds; see `score`."""
    standard_deviations: Mapping[str, float] | None
    """Standard deviations of the scores between the seeds; None for one seed."""
    one_modality_scores: Mapping[str, float]
    """Means of `score_one_modality`."""
    intervals_95: Mapping[str, tuple[float, float]]
    """95 % intervals of the scores; see `bootstrap`."""

    def to_json(self) -> dict[str, object]:
        """Plain data for a JSON file, without what is unknown."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def table(self) -> str:
        """Text for the terminal: what was scored and how, then two rows of five scores."""
        threshold = (
            f"threshold {self.threshold}"
            if isinstance(self.threshold, float)
            else "thresholds by class"
        )
        seeds = f", mean ± standard deviation of {self.seeds} files" if self.seeds > 1 else ""
        lines = [
            f"{self.split}, {self.clips} clips, audio annotations {self.audio_annotations}, "
            f"rule {self.rule}, {threshold}{seeds}",
            f"{'':8}" + "".join(f"{name.replace('_av', '@av'):>13}" for name in STREAM_SCORES),
        ]
        for level in LEVELS:
            cells = (self._cell(f"{level}_{column}") for column in STREAM_SCORES)
            lines.append(f"{level:8}" + "".join(f"{cell:>13}" for cell in cells))
        faults = {name: count for name, count in self.annotation_faults.items() if count}
        if faults:
            lines.append(f"faults in the annotation files, counted and handled: {faults}")
        return "\n".join(lines)

    def _cell(self, key: str) -> str:
        if self.standard_deviations is None:
            return f"{self.scores[key]:.1f}"
        return f"{self.scores[key]:.1f} ± {self.standard_deviations[key]:.1f}"


def report(
    predictions: Sequence[Predictions], annotations: Annotations, rule: str, threshold: Threshold
) -> ScoreReport:
    """Score the predictions of one parser, or of several that differ only in their seed.

    Args:
        predictions: in the order of the annotations, see `Predictions.ordered`.
        annotations: dense events of the same clips.
        rule: decision rule, see `decide`.
        threshold: probability at which an event is decided, see `decide`.
    """
    assert annotations.events is not None
    masks = [one.decided(rule, threshold) for one in predictions]
    summary = summarise(masks, annotations.events)
    alone = [score_one_modality(mask, annotations.events) for mask in masks]
    spreads = {key: one.standard_deviation for key, one in summary.items()}
    return ScoreReport(
        split=annotations.split,
        audio_annotations=annotations.audio_version,
        rule=rule,
        threshold=np.asarray(threshold).tolist(),
        clips=len(annotations.ids),
        annotation_faults=annotations.faults,
        seeds=len(masks),
        scores={key: one.mean for key, one in summary.items()},
        standard_deviations=spreads if len(masks) > 1 else None,
        one_modality_scores={k: float(np.mean([one[k] for one in alone])) for k in alone[0]},
        intervals_95={key: (one.low, one.high) for key, one in summary.items()},
    )


def score_file(
    predictions: list[Path],
    annotations: Path,
    split: str,
    audio_annotations: str,
    rule: str,
    threshold: str,
    json: Path | None,
) -> None:
    """Print the scores of prediction files of one parser.

    Args:
        predictions: files that differ in the seed of training.
        annotations: folder of LLP's csv files.
        threshold: see `read_threshold`.
        json: file to write the report to.

    Raises:
        DataError: if a file is wrong.
    """
    loaded = [Predictions.load(path) for path in predictions]
    snippets = loaded[0].frame_prob.shape[1]
    truth = read_annotations(annotations, split, audio_version=audio_annotations, snippets=snippets)
    ordered = [one.ordered(truth, path) for one, path in zip(loaded, predictions, strict=True)]
    scored = report(ordered, truth, rule, read_threshold(threshold, len(truth.classes)))
    print(scored.table())
    if json is not None:
        write_json(json, scored.to_json())


def read_threshold(text: str, classes: int) -> Threshold:
    """Parse a threshold: a number, or a `.npy` file of one per modality and class, `[2, C]`.

    Raises:
        DataError: if it is neither.
    """
    try:
        number = float(text)
    except ValueError:
        return _class_thresholds(text, classes)
    if not math.isfinite(number):
        raise DataError(f"threshold {text} is not a finite number")
    return number


def _class_thresholds(text: str, classes: int) -> NDArray[np.floating]:
    try:
        with Path(text).open("rb") as file:
            limits: NDArray[np.floating] = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"threshold {text} is no number and no .npy file: {error}") from None
    if not np.issubdtype(limits.dtype, np.number):
        raise DataError(f"threshold {text} is {limits.dtype}, expected numbers")
    if limits.shape != (2, classes) or not np.isfinite(limits).all():
        raise DataError(
            f"threshold {text} is {list(limits.shape)}, expected finite [2, {classes}] "
            "(audio and visual, a class each)"
        )
    return limits


def _probabilities(
    path: Path, name: str, array: NDArray[np.floating], ids: tuple[str, ...]
) -> NDArray[np.float32]:
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{path}: {name} is {array.dtype}, expected probabilities as floats")
    within = (array >= 0) & (array <= LARGEST[name] + ROUNDING)
    wrong = ~within.reshape(len(array), -1).all(1)
    if wrong.any():
        raise DataError(
            f"{path}: {name} of clip {ids[int(wrong.argmax())]} is not a probability "
            f"(NaN or outside 0 to {LARGEST[name]:g}), {int(wrong.sum())} clips in all"
        )
    return array.astype(np.float32)
