"""Sources: features on disk read as clips, from array files and from HAN's feature folders.

A source knows the ids of its clips and is cut into parts, one per shard. A part can be pickled,
sent to another process and read there.
"""

from __future__ import annotations

import functools
import logging
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.errors import DataError
from avvp_dist.shards.schema import HAN_EXTRACTOR, Clip

log = logging.getLogger(__name__)

BROKEN = (OSError, ValueError, EOFError, zipfile.BadZipFile)
"""Errors of `np.load` for a file that is missing, cut off or of another format."""

HAN_STREAMS = {"audio": "vggish", "visual": "res152", "motion": "r2plus1d_18"}
"""Feature folder of each stream in HAN's release (Tian et al., ECCV 2020)."""

_FRAMES, _FRAMES_PER_SNIPPET = 80, 8
"""Frames of a whole clip and of a snippet in HAN's release."""
_MINIMUM_FRAMES = 72
"""Clips with at least this many frames are filled up to a whole clip, as in the paper's code."""

Labels = tuple[str, ...] | None
"""Weak labels of a clip; None where they are not known."""


class SourcePart(Protocol):
    """Some consecutive clips of a source: a picklable dataclass of plain values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def files(self) -> Sequence[Path]:
        """Files that the clips are read from; their sizes and times tell whether they changed."""

    def __iter__(self) -> Iterator[Clip | DataError]:
        """Yield the clips in order, and an error in place of a broken one."""


class Source(Protocol):
    """Clips of one split of a feature folder."""

    extractor: str
    """Name of the feature extractor; empty if the format does not tell."""
    snippets: int
    """T of its clips."""

    @property
    def ids(self) -> Sequence[str]:
        """Clip ids in order."""

    def part(self, start: int, stop: int) -> SourcePart:
        """Part with the clips `start` to `stop`, exclusive."""


class ArraySource:
    """Clips of `FOLDER/features_SPLIT.npz`: `filenames [N]` and one array `[N, T, D]` per stream.

    Args:
        annotations: folder of the AVVP_*.csv; empty: `folder`, where they may be missing.

    Raises:
        DataError: for a missing or broken file, or annotations of other clips.
    """

    extractor = ""

    def __init__(self, folder: Path, split: str, annotations: str) -> None:
        self.path = folder / f"features_{split}.npz"
        streams = _load_arrays(str(self.path))
        self.ids = [str(name) for name in streams["filenames"]]
        self._labels = labels_of(annotations or folder, split, bool(annotations))
        if self._labels and not set(self.ids) & self._labels.keys():
            raise DataError(
                f"{self.path}: none of its {len(self.ids)} clips, first {self.ids[0]}, is in the "
                f"{split} split of the annotations",
                remedy="Set annotations= to the folder of their AVVP_*.csv",
            )
        heights = {array.shape[1] for name, array in streams.items() if name != "filenames"}
        self.snippets = max(heights, default=0)

    def part(self, start: int, stop: int) -> ArrayPart:
        chosen = self.ids[start:stop]
        return ArrayPart(str(self.path), start, [self._labels.get(clip) for clip in chosen])


@dataclass(frozen=True)
class ArrayPart:
    """Rows of an array file, from `start` on, with their labels."""

    path: str
    start: int
    labels: list[Labels]
    """One per row; their number is the number of rows."""

    def files(self) -> Sequence[Path]:
        return [Path(self.path)]

    def __iter__(self) -> Iterator[Clip | DataError]:
        streams = dict(_load_arrays(self.path))
        ids = streams.pop("filenames")
        for row, labels in enumerate(self.labels, self.start):
            features = {name: array[row] for name, array in streams.items()}
            yield Clip(str(ids[row]), features, labels)


def _load_arrays(path: str) -> dict[str, NDArray[Any]]:
    if not Path(path).is_file():
        raise DataError(f"{path} is missing")
    return _loaded(path, Path(path).stat().st_mtime_ns)


@functools.lru_cache(1)
def _loaded(path: str, changed: int) -> dict[str, NDArray[Any]]:
    """Arrays of a file, kept in memory for its next part; `changed` is its time in ns."""
    try:
        with np.load(path, allow_pickle=False) as file:
            streams = {name: file[name] for name in file.files}
    except BROKEN as error:
        raise DataError(f"{path} is no whole npz file: {error}") from None
    if "filenames" not in streams:
        raise DataError(f"{path} has no array `filenames`")
    count = len(streams["filenames"])
    for name, array in streams.items():
        if name == "filenames":
            continue
        if array.dtype.kind not in "fiu":
            raise DataError(f"{path}: {name} is {array.dtype}, expected numbers")
        if array.ndim != 3 or len(array) != count:
            raise DataError(f"{path}: {name} is {list(array.shape)}, expected [{count}, T, D]")
    return streams


class HanSource:
    """Clips of HAN's release in csv order; 80 frames are mean-pooled to 10 snippets.

    Files are named by the first 11 characters of the clip id. As in the paper's code, a clip with
    72 to 79 frames is filled up with its last one; the log counts these clips.

    Raises:
        DataError: without annotations, which give the clips and their order.
    """

    extractor = HAN_EXTRACTOR
    snippets = 10

    def __init__(self, folder: Path, split: str, annotations: str) -> None:
        self.folder = folder
        self._labels = labels_of(annotations or folder, split, bool(annotations))
        if not self._labels:
            raise DataError(
                "HAN's features are packed in the order of AVVP_*.csv, and "
                f"{annotations or folder} holds none",
                remedy="Set annotations= to their folder",
            )
        self.ids = list(self._labels)

    def part(self, start: int, stop: int) -> HanPart:
        chosen = self.ids[start:stop]
        return HanPart(str(self.folder), {clip: self._labels[clip] for clip in chosen})


@dataclass(frozen=True)
class HanPart:
    """Clips of HAN's release, with their labels."""

    folder: str
    labels: dict[str, Labels]

    def files(self) -> Sequence[Path]:
        return [file for clip in self.labels for file in self._files(clip).values()]

    def __iter__(self) -> Iterator[Clip | DataError]:
        filled = 0
        for clip, labels in self.labels.items():
            try:
                streams = {
                    name: np.load(file, allow_pickle=False)
                    for name, file in self._files(clip).items()
                }
                filled += _MINIMUM_FRAMES <= len(streams["visual"]) < _FRAMES
                streams["visual"] = pool_frames(streams["visual"])
            except BROKEN as error:
                yield DataError(f"clip {clip}: {error}")
                continue
            yield Clip(clip, streams, labels)
        if filled:
            log.warning(
                "clips of %d to %d frames, filled up with their last one: %d",
                _MINIMUM_FRAMES,
                _FRAMES - 1,
                filled,
            )

    def _files(self, clip: str) -> dict[str, Path]:
        return {
            name: Path(self.folder) / "feats" / sub / f"{clip[:11]}.npy"
            for name, sub in HAN_STREAMS.items()
        }


def pool_frames(frames: NDArray[np.floating]) -> NDArray[np.floating]:
    """Snippets `[F / 8, D]` as the mean of every 8 of F frames `[F, D]`.

    A clip of 72 to 79 frames is filled up to 80 with its last frame. In a shorter clip the frames
    after the last whole snippet are left out.

    Raises:
        ValueError: for more than 80 frames.
    """
    if len(frames) > _FRAMES:
        raise ValueError(f"{len(frames)} frames, more than {_FRAMES}")
    if len(frames) >= _MINIMUM_FRAMES:
        frames = np.concatenate([frames, np.repeat(frames[-1:], _FRAMES - len(frames), 0)])
    whole = len(frames) // _FRAMES_PER_SNIPPET
    snippets = frames[: _FRAMES_PER_SNIPPET * whole].reshape(whole, _FRAMES_PER_SNIPPET, -1)
    pooled: NDArray[np.floating] = snippets.mean(1, dtype=np.float32)
    return pooled


def labels_of(folder: str | Path, split: str, needed: bool = False) -> dict[str, Labels]:
    """Weak labels by clip id from the `AVVP_*.csv` of a folder, in csv order.

    Returns:
        An empty dictionary if there is no such file.

    Raises:
        DataError: if there is no such file and it is `needed`, or the file is broken.
    """
    if not any(Path(folder).glob("AVVP_*.csv")):
        if needed:
            raise DataError(f"annotations: {folder} holds no AVVP_*.csv")
        return {}
    annotations = read_annotations(folder, split)
    return {
        clip: tuple(annotations.classes[c] for c in np.flatnonzero(row))
        for clip, row in zip(annotations.ids, annotations.weak, strict=True)
    }
