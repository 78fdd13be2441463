"""LLP's annotations, read from the files its authors publish (Tian et al., ECCV 2020)."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import DataError
from avvp_dist.shards.schema import LLP_CLASSES

WEAK_FILES = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}
AUDIO_FILES = {"2024": "AVVP_eval_audio.csv", "2020": "AVVP_eval_audio.orig2020.csv"}
VISUAL_FILE = "AVVP_eval_visual.csv"

FAULTS = ("decimal_id", "empty_event", "duplicate_row", "overlapping_row", "unknown_clip")
"""Keys of `Annotations.faults`, see `read_annotations`."""


@dataclass(frozen=True)
class Annotations:
    """Weak and, for val and test, dense labels of one split, clips in csv order.

    `weak` is float32 `[N, C]` of 0 and 1. `events` is bool `[N, T, 2, C]`, with 0 audio and 1
    visual on axis 2, and None for train. Row n belongs to the clip `ids[n]`.
    """

    split: str
    audio_version: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    weak: NDArray[np.float32]
    events: NDArray[np.bool_] | None
    faults: dict[str, int]


class _Event(NamedTuple):
    clip: str
    onset: int
    offset: int
    label: int


def read_annotations(
    folder: str | os.PathLike[str],
    split: str,
    *,
    audio_version: str = "2024",
    classes: Sequence[str] = LLP_CLASSES,
    snippets: int = 10,
) -> Annotations:
    """Labels of `split` ('train', 'val' or 'test') from LLP's csv files in `folder`.

    Dense events are half-open spans of whole seconds. The audio events exist in two versions:
    '2020' is the one of all numbers published before April 2024, and '2024' has three typing
    errors fixed. `snippets` is T.

    Known faults of the files are counted in `faults` and then treated as the official evaluator
    treats them. `decimal_id` counts clips of the split. The others count rows of both dense
    files, of all splits:

    - `empty_event`: onset >= offset, marks nothing
    - `duplicate_row`: repeats an earlier row
    - `overlapping_row`: shares a second with an earlier row of the same clip and class
    - `unknown_clip`: names a clip that is in neither val nor test, marks nothing

    Raises:
        DataError: for an unknown split or version, a missing file or column, an unknown class, a
            span that is not whole seconds within the clip, or a clip listed twice.
    """
    folder = Path(folder)
    if split not in WEAK_FILES:
        raise DataError(f"split '{split}' is not one of {', '.join(WEAK_FILES)}")
    if audio_version not in AUDIO_FILES:
        raise DataError(f"audio version '{audio_version}' is not one of {', '.join(AUDIO_FILES)}")
    columns = {name: column for column, name in enumerate(classes)}
    ids, weak = _read_weak(folder / WEAK_FILES[split], columns)
    faults = dict.fromkeys(FAULTS, 0)
    faults["decimal_id"] = sum("." in clip for clip in ids)
    events = None
    if split != "train":
        other = folder / WEAK_FILES["val" if split == "test" else "test"]
        known = {*ids, *(clip for _, (clip,) in _rows(other, ("filename",)))}
        rows = {clip: row for row, clip in enumerate(ids)}
        events = np.zeros((len(ids), snippets, 2, len(columns)), dtype=np.bool_)
        for stream, path in enumerate((_audio_file(folder, audio_version), folder / VISUAL_FILE)):
            dense = _read_events(path, columns, snippets)
            _count_faults(dense, known, faults)
            for event in dense:
                if event.clip in rows:
                    seconds = slice(event.onset, event.offset)
                    events[rows[event.clip], seconds, stream, event.label] = True
    return Annotations(split, audio_version, tuple(classes), ids, weak, events, faults)


def _audio_file(folder: Path, version: str) -> Path:
    path = folder / AUDIO_FILES[version]
    if not path.is_file():
        raise DataError(
            f"the {version} audio events are not in {folder}: {path.name} is missing",
            remedy="Add that file or choose the other audio version (2020 or 2024)",
        )
    return path


def _read_weak(path: Path, columns: dict[str, int]) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    labels: dict[str, list[int]] = {}
    for line, (clip, names) in _rows(path, ("filename", "event_labels")):
        if clip in labels:
            raise DataError(f"{path}, line {line}: clip {clip} is listed twice")
        given = [name.strip() for name in names.split(",") if name.strip()]
        if not given:
            raise DataError(f"{path}, line {line}: clip {clip} has no label")
        labels[clip] = [_column(name, columns, path, line) for name in given]
    weak = np.zeros((len(labels), len(columns)), dtype=np.float32)
    for row, present in enumerate(labels.values()):
        weak[row, present] = 1
    return tuple(labels), weak


def _read_events(path: Path, columns: dict[str, int], snippets: int) -> list[_Event]:
    dense = []
    for line, (clip, *span, name) in _rows(path, ("filename", "onset", "offset", "event_labels")):
        try:
            onset, offset = map(_whole, span)
        except ValueError:
            raise DataError(
                f"{path}, line {line}: {span[0]} to {span[1]} is not a span of whole seconds"
            ) from None
        if min(onset, offset) < 0 or max(onset, offset) > snippets:
            raise DataError(
                f"{path}, line {line}: {onset} to {offset} s leaves the clip's {snippets} snippets"
            )
        dense.append(_Event(clip, onset, offset, _column(name.strip(), columns, path, line)))
    return dense


def _whole(text: str) -> int:
    """The whole number that a text is, also as `3.0`; ValueError for any other text."""
    number = float(text)
    if not number.is_integer():
        raise ValueError
    return int(number)


def _count_faults(dense: list[_Event], known: set[str], faults: dict[str, int]) -> None:
    earlier: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for clip, onset, offset, label in dense:
        spans = earlier[clip, label]
        if (onset, offset) in spans:
            faults["duplicate_row"] += 1
        elif onset >= offset:
            faults["empty_event"] += 1
        elif any(onset < end and start < offset for start, end in spans):
            faults["overlapping_row"] += 1
        if clip not in known:
            faults["unknown_clip"] += 1
        spans.append((onset, offset))


def _column(name: str, columns: dict[str, int], path: Path, line: int) -> int:
    if name not in columns:
        (nearest,) = get_close_matches(name, columns, n=1, cutoff=0.0)
        raise DataError(
            f"{path}, line {line}: class '{name}' is unknown",
            remedy=f"The nearest class is '{nearest}'",
        )
    return columns[name]


def _rows(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line number and the values of `fields` of each row of a file."""
    try:
        # A byte order mark is no part of the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if any("\0" in name for name in reader.fieldnames or ()):
                raise csv.Error("it holds zeros, as UTF-16 does")
            for field in fields:
                if field not in (reader.fieldnames or ()):
                    raise DataError(
                        f"{path} has no column '{field}'",
                        remedy="LLP's files are tab separated and begin with a header row",
                    )
            for row in reader:
                values = tuple(row[field] for field in fields)
                if None in values:
                    raise DataError(f"{path}, line {reader.line_num}: the row is cut short")
                yield reader.line_num, values
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} is no text in UTF-8: {error}", remedy="Save it again as UTF-8"
        ) from None
