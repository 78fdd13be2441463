"""Sources: features on disk read as clips, from array files and from HAN's feature folders.

A source knows the ids of its clips and is cut into parts, one per shard. A part can be pickled,
sent to another process and read there.
"""

from __future__ import annotations

import functools
import logging
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from avvp_dist.annotations.llp import WEAK_FILES, read_annotations
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.packing.rates import check_same_length, check_usual_rows, snippets_of, to_snippets
from avvp_dist.shards.remote import RemoteFile
from avvp_dist.shards.schema import HAN_EXTRACTOR, Clip

log = logging.getLogger(__name__)

BROKEN = (OSError, ValueError, EOFError, zipfile.BadZipFile)
"""Errors of `np.load` for a file that is missing, cut off or of another format."""

HAN_STREAMS = {"audio": "vggish", "visual": "res152", "motion": "r2plus1d_18"}
"""Feature folder of each stream in HAN's release (Tian et al., ECCV 2020)."""

_CLIPS_OF_RATES = 100
"""Number of clips that are looked at to see which rates a folder has."""

_HAN_RATES = {"audio": 1.0, "visual": 8.0, "motion": 1.0}
"""Rows a second of each stream in HAN's release."""

Labels = tuple[str, ...] | None
"""Weak labels of a clip; None where they are not known."""

SourceFile = Path | RemoteFile
"""A file that clips are read from."""


class SourcePart(Protocol):
    """Some consecutive clips of a source: a picklable dataclass of plain values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def files(self) -> Sequence[SourceFile]:
        """Files that the clips are read from; their sizes and times tell whether they changed."""

    def __iter__(self) -> Iterator[Clip | DataError]:
        """Yield the clips in order, and an error in place of a broken one."""


class Source(Protocol):
    """Clips of one split of a feature folder."""

    extractor: str
    """Name of the feature extractor; empty if the format does not tell."""
    snippets: int
    """T of its clips."""
    dims: dict[str, int] | None
    """Dims of its streams; None: they are those of the first clip."""

    @property
    def ids(self) -> Sequence[str]:
        """Clip ids in order."""

    def part(self, start: int, stop: int) -> SourcePart:
        """Part with the clips `start` to `stop`, exclusive."""


class ArraySource:
    """Clips of `FOLDER/features_SPLIT.npz`: `filenames [N]` and one array `[N, T, D]` per stream.

    Args:
        annotations: folder of the AVVP_*.csv; empty: `folder`, where they may be missing.
        rates: rows a second by stream; 1 where none is given.

    Raises:
        DataError: for a missing or broken file, streams of different lengths, or annotations of
            other clips.
    """

    extractor = ""
    dims: dict[str, int] | None = None

    def __init__(
        self, folder: Path, split: str, annotations: str, rates: Mapping[str, float]
    ) -> None:
        self.path = folder / f"features_{split}.npz"
        streams = _load_arrays(str(self.path))
        self.ids = _names(streams["filenames"])
        self._labels = labels_of(annotations or folder, split, bool(annotations))
        if self._labels and not set(self.ids) & self._labels.keys():
            raise DataError(
                f"{self.path}: none of its {len(self.ids)} clips, first {self.ids[0]}, is in the "
                f"{split} split of the annotations",
                remedy="Set annotations= to the folder of their AVVP_*.csv",
            )
        rows = {name: array.shape[1] for name, array in streams.items() if name != "filenames"}
        self.snippets = check_same_length(self.path, rows, rates) if rows else 0
        self._rates = dict(rates)

    @classmethod
    def files_of(cls, folder: Path, split: str, annotations: str) -> list[Path]:
        """Files that clips are read from, without a look into features; some may be missing."""
        labels = _annotation_files(annotations or folder, split)
        return [folder / f"features_{split}.npz", *labels]

    def part(self, start: int, stop: int) -> ArrayPart:
        chosen = self.ids[start:stop]
        labels = [self._labels.get(clip) for clip in chosen]
        return ArrayPart(str(self.path), start, labels, self._rates)


@dataclass(frozen=True)
class ArrayPart:
    """Rows of an array file, from `start` on, with their labels."""

    path: str
    start: int
    labels: list[Labels]
    """One per row; their number is the number of rows."""
    rates: dict[str, float]

    def files(self) -> Sequence[Path]:
        return [Path(self.path)]

    def __iter__(self) -> Iterator[Clip | DataError]:
        streams = dict(_load_arrays(self.path))
        ids = _names(streams.pop("filenames"))
        for row, labels in enumerate(self.labels, self.start):
            features = {
                name: to_snippets(array[row], self.rates.get(name, 1.0))
                for name, array in streams.items()
            }
            yield Clip(ids[row], features, labels)


def _names(filenames: NDArray[Any]) -> list[str]:
    """Clip ids, which NumPy may have stored as bytes."""
    return [name.decode() if isinstance(name, bytes) else str(name) for name in filenames.tolist()]


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
    """Clips of HAN's release in csv order; 8 frames a second are mean-pooled to snippets.

    Files are named by the first 11 characters of the clip id. As in the paper's code, a clip of
    72 to 79 frames is filled up with its last one. Streams of different lengths are cut to the
    shortest one. The log counts these clips.

    Args:
        rates: rows a second by stream; 8 for `visual` and 1 for the others where none is given.

    Raises:
        DataError: without annotations, which give the clips and their order, or if most clips have
            other rates.
        ConfigError: for the rate of another stream.
    """

    extractor = HAN_EXTRACTOR
    snippets = 10
    dims: dict[str, int] | None = None

    def __init__(
        self, folder: Path, split: str, annotations: str, rates: Mapping[str, float]
    ) -> None:
        if unknown := sorted(set(rates) - set(HAN_STREAMS)):
            raise ConfigError(f"rates.{unknown[0]}: HAN's streams are {', '.join(HAN_STREAMS)}")
        self.folder = folder
        self._rates = {**_HAN_RATES, **rates}
        self._labels = labels_of(annotations or folder, split, bool(annotations))
        if not self._labels:
            raise DataError(
                "HAN's features are packed in the order of AVVP_*.csv, and "
                f"{annotations or folder} holds none",
                remedy="Set annotations= to their folder",
            )
        self.ids = list(self._labels)
        chosen = self.ids[:: -(-len(self.ids) // _CLIPS_OF_RATES)]
        part = HanPart(str(folder), dict.fromkeys(chosen), self._rates)
        check_usual_rows(part.row_counts(), self._rates)

    @classmethod
    def files_of(cls, folder: Path, split: str, annotations: str) -> list[Path]:
        labels = labels_of(annotations or folder, split)
        features = HanPart(str(folder), labels, {}).files()
        return [*features, *_annotation_files(annotations or folder, split)]

    def part(self, start: int, stop: int) -> HanPart:
        chosen = self.ids[start:stop]
        return HanPart(str(self.folder), {clip: self._labels[clip] for clip in chosen}, self._rates)


@dataclass(frozen=True)
class HanPart:
    """Clips of HAN's release, with their labels."""

    folder: str
    labels: dict[str, Labels]
    rates: dict[str, float]

    def files(self) -> Sequence[Path]:
        return [file for clip in self.labels for file in self._files(clip).values()]

    def __iter__(self) -> Iterator[Clip | DataError]:
        filled = cut = 0
        for clip, labels in self.labels.items():
            try:
                rows = {name: _load_rows(file) for name, file in self._files(clip).items()}
                whole = {name: fill_up(x, self.rates[name]) for name, x in rows.items()}
                streams = {name: pool_rows(x, self.rates[name]) for name, x in whole.items()}
            except (DataError, *BROKEN) as error:
                yield DataError(f"clip {clip}: {error}")
                continue
            filled += len(whole["visual"]) > len(rows["visual"])
            length = min(map(len, streams.values()))
            cut += any(snippets_of(len(x), self.rates[name]) != length for name, x in whole.items())
            yield Clip(clip, streams, labels, length)
        for count, what in (
            (filled, "9 to 10 seconds of frames, filled up with their last one"),
            (cut, "streams of different lengths, cut to the whole seconds of the shortest"),
        ):
            if count:
                log.warning("clips of %s: %d", what, count)

    def row_counts(self) -> list[dict[str, int]]:
        """Number of rows by stream, of the clips whose files can be read."""
        counts = []
        for clip in self.labels:
            with suppress(*BROKEN, TypeError):  # of an array without dimensions
                counts.append(
                    {
                        name: len(np.load(file, mmap_mode="r", allow_pickle=False))
                        for name, file in self._files(clip).items()
                    }
                )
        return counts

    def _files(self, clip: str) -> dict[str, Path]:
        return {
            name: Path(self.folder) / "feats" / sub / f"{clip[:11]}.npy"
            for name, sub in HAN_STREAMS.items()
        }


def _load_rows(file: Path) -> NDArray[np.floating]:
    """Rows `[R, D]` of a file of HAN's release.

    Raises:
        DataError: naming the file, if it holds another array.
        OSError, ValueError, EOFError: if it is missing or damaged.
    """
    try:
        rows: NDArray[np.floating] = np.load(file, allow_pickle=False)
    except BROKEN as error:
        raise DataError(f"{file}: {error or 'it is empty'}") from None
    if rows.ndim != 2 or rows.dtype.kind not in "fiu":
        raise DataError(f"{file} is {rows.dtype} {list(rows.shape)}, expected numbers [rows, D]")
    return rows


def fill_up(rows: NDArray[np.floating], rate: float) -> NDArray[np.floating]:
    """Rows `[R, D]` at several a second, of at least 9 of 10 seconds, filled up with the last one.

    Raises:
        DataError: for more than 10 seconds.
    """
    full = round(rate * HanSource.snippets)
    if len(rows) > full:
        raise DataError(f"{len(rows)} rows, more than 10 seconds of {rate:g}")
    if rate <= 1 or len(rows) < 0.9 * full:
        return rows
    return np.concatenate([rows, np.repeat(rows[-1:], full - len(rows), 0)])


def pool_rows(rows: NDArray[np.floating], rate: float) -> NDArray[np.floating]:
    """Snippets `[S, D]` of the whole seconds of rows `[R, D]`; see `to_snippets`."""
    return to_snippets(rows[: len(rows) - len(rows) % max(1, round(rate))], rate)


def _annotation_files(folder: str | Path, split: str) -> list[Path]:
    """Files that `labels_of` reads: validation and test have dense labels too."""
    return sorted(Path(folder).glob(WEAK_FILES["train"] if split == "train" else "AVVP_*.csv"))


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
