"""A parser's predictions as a file, ours or anyone's, checked and scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.annotations.alignment import align
from avvp_dist.annotations.llp import Annotations, read_annotations
from avvp_dist.commit import staged, write_json
from avvp_dist.errors import DataError
from avvp_dist.evaluation.scores import (
    LEVELS,
    STREAM_SCORES,
    Threshold,
    decide,
    score_one_modality,
    summarise,
)

_MOST = {"frame_prob": 1.0, "video_prob": 2.0, "modality_prob": 1.0}
"""HAN's pooling weighs by a softmax over time times one over modality. A modality's weights sum to
1, the clip's to as much as 2, and so its pooled "probability" may pass 1."""
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Predictions:
    """Probabilities of N clips, float32; the axis of size 2 is audio, visual."""

    ids: tuple[str, ...]
    frame_prob: NDArray[np.float32]
    """`[N, T, 2, C]`: of each snippet."""
    video_prob: NDArray[np.float32]
    """`[N, C]`: of the clip; HAN's pooling may take it past 1."""
    modality_prob: NDArray[np.float32] | None = None
    """`[N, 2, C]`: of the clip by modality, where known."""

    def save(self, path: Path) -> None:
        """Write an npz with `filenames` and the arrays by their names."""
        arrays: dict[str, Any] = {"frame_prob": self.frame_prob, "video_prob": self.video_prob}
        if self.modality_prob is not None:
            arrays["modality_prob"] = self.modality_prob
        with staged(path) as temporary, temporary.open("wb") as file:
            np.savez(file, filenames=np.array(self.ids), **arrays)

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read what `save` writes.

        Raises:
            DataError: naming file and array: missing, of other shape, not a probability.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except Exception as error:  # a file that is damaged or something else fails in many ways
            reason = (str(error) or repr(error)).splitlines()[0]
            raise DataError(f"{path} is no whole npz file: {reason}") from None
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
                found = list(arrays[name].shape)
                raise DataError(f"{path}: {name} is {found}, expected {list(shape)}")
        ids = tuple(str(name) for name in arrays["filenames"])
        for name in ("frame_prob", "video_prob", "modality_prob"):
            if name in arrays:
                arrays[name] = _probabilities(path, name, arrays[name], ids)
        return cls(ids, frame, arrays["video_prob"], arrays.get("modality_prob"))

    def decided(self, rule: str, threshold: Threshold) -> NDArray[np.bool_]:
        """`decide` on these probabilities: events, bool `[N, T, 2, C]`."""
        return decide(
            self.frame_prob, self.video_prob, self.modality_prob, rule=rule, threshold=threshold
        )

    def ordered(self, annotations: Annotations, path: Path) -> Predictions:
        """The predictions of the annotated clips, in csv order; others are left out.

        Raises:
            DataError: if an annotated clip is missing or doubled, or T or C is another.
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


def report(
    predictions: Sequence[Predictions], annotations: Annotations, rule: str, threshold: Threshold
) -> dict[str, Any]:
    """Scores, their intervals, and all that makes them comparable or not, as plain data.

    Args:
        predictions: of one parser, or of several that differ in their seed: then the scores are
            means, and `deviations` tells how far they spread. In csv order, see
            `Predictions.ordered`.
        rule, threshold: see `decide`.
    """
    assert annotations.events is not None
    masks = [one.decided(rule, threshold) for one in predictions]
    summary = summarise(masks, annotations.events)
    alone = [score_one_modality(mask, annotations.events) for mask in masks]
    several = len(masks) > 1
    return {
        "split": annotations.split,
        "audio_annotations": annotations.audio_version,
        "rule": rule,
        "threshold": np.asarray(threshold).tolist(),
        "clips": len(annotations.ids),
        "annotation_faults": annotations.faults,
        "seeds": len(masks),
        "scores": {key: one.mean for key, one in summary.items()},
        **({"deviations": {k: one.deviation for k, one in summary.items()}} if several else {}),
        "one_modality_scores": {k: float(np.mean([one[k] for one in alone])) for k in alone[0]},
        "intervals_95": {key: (one.low, one.high) for key, one in summary.items()},
    }


def score_file(
    predictions: list[Path],
    annotations: Path,
    split: str,
    audio_annotations: str,
    rule: str,
    threshold: str,
    json: Path | None,
) -> None:
    """Print the scores of prediction files; `json` also gets the whole `report`.

    Raises:
        DataError: in one line, for what is wrong with a file.
    """
    given = [Predictions.load(path) for path in predictions]
    snippets = given[0].frame_prob.shape[1]
    truth = read_annotations(annotations, split, audio_version=audio_annotations, snippets=snippets)
    ordered = [one.ordered(truth, path) for one, path in zip(given, predictions, strict=True)]
    found = report(ordered, truth, rule, read_threshold(threshold, len(truth.classes)))
    print(table(found))
    if json is not None:
        write_json(json, found)


def read_threshold(text: str, classes: int) -> Threshold:
    """A number, or a `.npy` file of one threshold per modality and class, `[2, C]`.

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
            found: NDArray[np.floating] = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"threshold {text} is no number and no .npy file: {error}") from None
    if not np.issubdtype(found.dtype, np.number):
        raise DataError(f"threshold {text} is {found.dtype}, expected numbers")
    if found.shape != (2, classes) or not np.isfinite(found).all():
        raise DataError(
            f"threshold {text} is {list(found.shape)}, expected finite [2, {classes}] "
            "(audio and visual, a class each)"
        )
    return found


def table(found: dict[str, Any]) -> str:
    """A `report` for the terminal: what was scored and how, then two rows of five numbers."""
    threshold = found["threshold"]
    shown = f"threshold {threshold}" if isinstance(threshold, float) else "thresholds by class"
    several = f", mean ± deviation over {found['seeds']} files" if found["seeds"] > 1 else ""
    lines = [
        f"{found['split']}, {found['clips']} clips, audio annotations "
        f"{found['audio_annotations']}, rule {found['rule']}, {shown}{several}",
        f"{'':8}" + "".join(f"{name.replace('_av', '@av'):>13}" for name in STREAM_SCORES),
    ]
    for level in LEVELS:
        cells = []
        for column in STREAM_SCORES:
            cell = f"{found['scores'][f'{level}_{column}']:.1f}"
            if several:
                cell += f" ± {found['deviations'][f'{level}_{column}']:.1f}"
            cells.append(f"{cell:>13}")
        lines.append(f"{level:8}{''.join(cells)}")
    faults = {name: count for name, count in found["annotation_faults"].items() if count}
    if faults:
        lines.append(f"faults in the annotation files, counted and handled: {faults}")
    return "\n".join(lines)


def _probabilities(
    path: Path, name: str, array: NDArray[Any], ids: tuple[str, ...]
) -> NDArray[np.float32]:
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{path}: {name} is {array.dtype}, expected probabilities as floats")
    within = (array >= 0) & (array <= _MOST[name] + _ROUNDING)
    wrong = ~within.reshape(len(array), -1).all(1)
    if wrong.any():
        raise DataError(
            f"{path}: {name} of clip {ids[int(wrong.argmax())]} is not a probability "
            f"(NaN or outside 0 to {_MOST[name]:g}), {int(wrong.sum())} clips in all"
        )
    return array.astype(np.float32)
