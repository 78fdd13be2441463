"""Features as others leave them on disk, read as clips: array files and HAN's feature folders.

A source knows the ids of its clips and is cut into parts, one a shard: a part can be sent to
another process and read there.
"""

from __future__ import annotations

import functools
import logging
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from avvp_dist.annotations.llp import Annotations, read_annotations
from avvp_dist.errors import DataError
from avvp_dist.shards.schema import HAN_EXTRACTOR, Clip

log = logging.getLogger(__name__)

BROKEN = (OSError, ValueError, EOFError, zipfile.BadZipFile)
"""What `np.load` raises for a file that is missing, cut off or something else."""

HAN_STREAMS = {"audio": "vggish", "visual": "res152", "motion": "r2plus1d_18"}
"""Stream name and feature folder of HAN's release (Tian et al., ECCV 2020)."""

Labels = tuple[str, ...] | None


class SourcePart(Protocol):
    """Some clips of a source: a picklable dataclass of plain values."""

    def files(self) -> Sequence[Path]:
        """What it reads; it changes when their sizes or times change."""

    def __iter__(self) -> Iterator[Clip | DataError]:
        """The clips in order; an error in the place of a broken one."""


class Source(Protocol):
    """The clips of one split of a feature folder."""

    extractor: str
    snippets: int
    ids: Sequence[str]

    def part(self, start: int, stop: int) -> SourcePart:
        """The clips `start` to `stop`."""


class ArraySource:
    """`features_SPLIT.npz`: `filenames [N]` and one `[N, T, D]` array per stream.

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
    """Rows of an array file, from `start` on."""

    path: str
    start: int
    labels: list[Labels]

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
    """The arrays of a file, kept for its next part."""
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
    """HAN's release, in csv order; 80 frames are mean-pooled to 10 snippets.

    Files are named by the first 11 characters of the clip id. As in the paper's code a clip
    with 72 to 79 frames is filled up with its last one; that is said in the log.

    Raises:
        DataError: without annotations: they give the clips and their order.
    """

    extractor = HAN_EXTRACTOR
    snippets = 10

    def __init__(self, folder: Path, split: str, annotations: str) -> None:
        self.folder = folder
        self._labels = labels_of(annotations or folder, split, bool(annotations))
        if not self._labels:
            raise DataError(
                f"HAN's features are packed in the order of AVVP_*.csv, none is in "
                f"{annotations or folder}",
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
                filled += 72 <= len(streams["visual"]) < 80
                streams["visual"] = pool_frames(streams["visual"])
            except BROKEN as error:
                yield DataError(f"clip {clip}: {error}")
                continue
            yield Clip(clip, streams, labels)
        if filled:
            log.warning("clips of 72 to 79 frames, filled up with their last one: %d", filled)

    def _files(self, clip: str) -> dict[str, Path]:
        return {
            name: Path(self.folder) / "feats" / sub / f"{clip[:11]}.npy"
            for name, sub in HAN_STREAMS.items()
        }


def pool_frames(frames: NDArray[np.floating]) -> NDArray[np.floating]:
    """Mean of every 8 frames, `[F, D]` to `[F / 8, D]`; a rest of frames is a snippet if it is
    nearly whole (72 to 79 of 80, which the paper's code fills up), else it is left out."""
    if len(frames) > 80:
        raise ValueError(f"{len(frames)} frames, more than 80")
    if len(frames) >= 72:
        frames = np.concatenate([frames, np.repeat(frames[-1:], 80 - len(frames), 0)])
    whole = len(frames) // 8
    pooled: NDArray[np.floating] = (
        frames[: 8 * whole].reshape(whole, 8, -1).mean(1, dtype=np.float32)
    )
    return pooled


def labels_of(folder: str | Path, split: str, needed: bool = False) -> dict[str, Labels]:
    """Weak labels by clip of a folder's `AVVP_*.csv`, in csv order; empty without such a file.

    Raises:
        DataError: if there is none though it is `needed`.
    """
    if not any(Path(folder).glob("AVVP_*.csv")):
        if needed:
            raise DataError(f"annotations: {folder} holds no AVVP_*.csv")
        return {}
    annotations: Annotations = read_annotations(folder, split)
    return {
        clip: tuple(annotations.classes[c] for c in np.flatnonzero(row))
        for clip, row in zip(annotations.ids, annotations.weak, strict=True)
    }
