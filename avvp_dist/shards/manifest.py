"""The manifest of a shard set as one value: `manifest.json`, parsed, validated and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from avvp_dist.commit import MANIFEST, json_text, sha256, write_json
from avvp_dist.errors import DataError
from avvp_dist.json_values import parse_value
from avvp_dist.shards.schema import DTYPES

FORMAT = "avvp-shards-2"
INDEX = "index.npy"

REASONS = ("id", "embedding", "duplicate")
"""Reasons to exclude a clip, in the order of the manifest's counts."""


@dataclass(frozen=True)
class StreamEntry:
    """Width and element type of a stream, and its value range over all finite clips.

    `min` and `max` are None if no clip is finite.
    """

    dim: int
    dtype: str
    min: float | None
    max: float | None


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One tar of a shard set: its file name, number of clips, size in bytes and SHA-256."""

    name: str
    clips: int
    bytes: int
    sha256: str

    @property
    def stem(self) -> str:
        """File name without its ending `.tar`."""
        return self.name.removesuffix(".tar")


@dataclass(frozen=True)
class ComparedList:
    """A list of held-out clips, or a shard set of them, that a corpus was compared with.

    `ids` is the number of its names. `sha256` is of the file, or of the shard set's manifest.
    """

    name: str
    ids: int
    sha256: str


@dataclass(frozen=True)
class ExcludedEntry:
    """The list of excluded clips: its file, their number, and how they were found.

    `reasons` counts clips by `REASONS`. `similarity` is the cosine from which two clips counted as
    one.
    """

    name: str
    bytes: int
    sha256: str
    clips: int
    reasons: Mapping[str, int]
    against: tuple[ComparedList, ...]
    similarity: float


@dataclass(frozen=True)
class Manifest:
    """A shard set: T, its streams by name, the index and the shards.

    `classes` are the label names that the index codes. `source` is where the clips came from, as
    plain values. `excluded` names the clips that are not for training, if there is such a list.
    """

    clips: int
    snippets: int
    streams: Mapping[str, StreamEntry]
    extractor: str
    classes: tuple[str, ...]
    source: Mapping[str, object]
    index: FileEntry
    shards: tuple[Shard, ...]
    excluded: ExcludedEntry | None = None

    @property
    def dims(self) -> dict[str, int]:
        """Feature dimension D of each stream."""
        return {name: stream.dim for name, stream in self.streams.items()}

    @property
    def dtype(self) -> str:
        """Element type of all streams."""
        return next(iter(self.streams.values())).dtype

    @property
    def content_digest(self) -> str:
        """Hex SHA-256 of the manifest without its entry `excluded`.

        Whatever is made of all clips, such as a grounding, goes by this digest.
        """
        return sha256(json_text(replace(self, excluded=None).as_json()).encode())

    def as_json(self) -> dict[str, object]:
        """The manifest as plain values, keys in the order of the file."""
        entries = {"format": FORMAT, **asdict(self)}
        if self.excluded is None:
            del entries["excluded"]
        return entries

    def save(self, folder: Path) -> None:
        """Write `manifest.json` into a folder, whole or not at all."""
        write_json(folder / MANIFEST, self.as_json())


def parse_manifest(text: bytes, path: str) -> Manifest:
    """The manifest in a file's `text`, every entry checked.

    Raises:
        DataError: naming `path` and the entry, if it is no manifest of this format, an entry is
            missing, unknown or of another type, or a file name leaves the shard set's folder.
    """
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{path} is not JSON") from None
    if not isinstance(entries, dict) or entries.pop("format", None) != FORMAT:
        raise DataError(
            f"{path} is no manifest of the format {FORMAT}",
            remedy="Remove the set and pack it again",
        )
    try:
        manifest = parse_value(Manifest, entries)
        _check_dtypes(manifest.streams)
        for number, shard in enumerate(manifest.shards):
            _check_file_name(shard.name, f"shards[{number}]")
        if "excluded" in entries:
            _check_excluded(manifest.excluded)
    except ValueError as error:
        again = "make it anew with avvp decontaminate"
        remedy = again if str(error).startswith("excluded") else "pack the set again"
        raise DataError(
            f"{path} is damaged: {error}", remedy=f"Copy it again, or {remedy}"
        ) from None
    return manifest


def _check_dtypes(streams: Mapping[str, StreamEntry]) -> None:
    """Raise `ValueError` unless all streams are of one of `DTYPES`."""
    dtypes = {stream.dtype for stream in streams.values()}
    if len(dtypes) != 1 or not dtypes <= set(DTYPES):
        raise ValueError(f"streams are {sorted(dtypes)}, expected one of {' and '.join(DTYPES)}")


def _check_excluded(entry: ExcludedEntry | None) -> None:
    if entry is None:
        raise ValueError("excluded is null")
    if set(entry.reasons) != set(REASONS):
        raise ValueError(f"excluded.reasons has {sorted(entry.reasons)}, not {sorted(REASONS)}")
    _check_file_name(entry.name, "excluded")


def _check_file_name(name: str, where: str) -> None:
    """Raise `ValueError` for a name that leads out of the shard set or to a hidden file."""
    if "/" in name or name.startswith("."):
        raise ValueError(f"{where}: {name!r} is no name of a file in the shard set")
