"""A parser's predictions as a file, ours or anyone's, checked and scored."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import staged, write_json
from avvp_dist.data.llp import Annotations, read_annotations
from avvp_dist.errors import DataError
from avvp_dist.evaluation.scores import bootstrap, decide, score, score_one_modality

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
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is no whole npz file: {error}") from None
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

    def decided(self, rule: str, threshold: float) -> NDArray[np.bool_]:
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
        row = {clip: n for n, clip in enumerate(self.ids)}
        if len(row) < len(self.ids):
            twice = next(clip for n, clip in enumerate(self.ids) if row[clip] != n)
            raise DataError(f"{path}: clip {twice} is predicted twice")
        missing = [clip for clip in annotations.ids if clip not in row]
        if missing:
            raise DataError(
                f"{path} lacks {len(missing)} of the {len(annotations.ids)} "
                f"{annotations.split} clips, first {missing[0]}"
            )
        if self.frame_prob.shape[1:] != annotations.events.shape[1:]:
            raise DataError(
                f"{path}: frame_prob is [N, T, 2, C] with T, 2, C = "
                f"{list(self.frame_prob.shape[1:])}, the annotations have "
                f"{list(annotations.events.shape[1:])}"
            )
        rows = [row[clip] for clip in annotations.ids]
        modality = None if self.modality_prob is None else self.modality_prob[rows]
        return Predictions(annotations.ids, self.frame_prob[rows], self.video_prob[rows], modality)


def report(
    predictions: Predictions, annotations: Annotations, rule: str, threshold: float
) -> dict[str, Any]:
    """Scores, their intervals, and all that makes them comparable or not, as plain data.

    Args:
        predictions: in csv order, see `Predictions.ordered`.
        rule: see `decide`.
    """
    assert annotations.events is not None
    predicted = predictions.decided(rule, threshold)
    return {
        "split": annotations.split,
        "audio_annotations": annotations.audio_version,
        "rule": rule,
        "threshold": threshold,
        "clips": len(annotations.ids),
        "annotation_faults": annotations.faults,
        "scores": score(predicted, annotations.events),
        "one_modality_scores": score_one_modality(predicted, annotations.events),
        "intervals_95": bootstrap(predicted, annotations.events),
    }


def score_file(
    predictions: Path,
    annotations: Path,
    split: str,
    audio_annotations: str,
    rule: str,
    threshold: float,
    json: Path | None,
) -> None:
    """Print a prediction file's scores; `json` also gets the whole `report`.

    Raises:
        DataError: in one line, for what is wrong with either file.
    """
    given = Predictions.load(predictions)
    truth = read_annotations(
        annotations, split, audio_version=audio_annotations, snippets=given.frame_prob.shape[1]
    )
    found = report(given.ordered(truth, predictions), truth, rule, threshold)
    print(table(found))
    if json is not None:
        write_json(json, found)


def table(found: dict[str, Any]) -> str:
    """A `report` for the terminal: what was scored and how, then two rows of five numbers."""
    lines = [
        f"{found['split']}, {found['clips']} clips, audio annotations "
        f"{found['audio_annotations']}, rule {found['rule']}, threshold {found['threshold']}",
        f"{'':8}{'audio':>8}{'visual':>8}{'av':>8}{'type@av':>9}{'event@av':>10}",
    ]
    for level in ("segment", "event"):
        columns = ("audio", "visual", "av", "type_av", "event_av")
        row = [found["scores"][f"{level}_{column}"] for column in columns]
        lines.append("{:8}{:8.1f}{:8.1f}{:8.1f}{:9.1f}{:10.1f}".format(level, *row))
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
