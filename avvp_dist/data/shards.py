"""Shard sets: plain WebDataset tars of fixed-size members, read as memory-mapped arrays.

A shard set is a folder with `manifest.json`, `shard-NNNNNN.tar` and `shard-NNNNNN.index.json`.
Each clip is `KEY.STREAM.npy` (float16 `[T, D]`) per stream and one `KEY.json`. Members are
uncompressed and of fixed size, so record i of a tar starts at i times its stride.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import MANIFEST, sha256, staged, write_json
from avvp_dist.data.schema import Clip, decode_key, encode_key
from avvp_dist.errors import DataError

FORMAT = "avvp-shards-1"


def write_shard_set(
    clips: Iterable[Clip],
    out: Path,
    *,
    clips_per_shard: int = 2000,
    extractor: str = "",
    source: dict[str, Any] | None = None,
) -> ShardSet:
    """Write `clips` in their order; the first one fixes T and the streams' dims.

    Equal clips give equal bytes. The manifest is written last: without it there is no shard set.

    Raises:
        DataError: for a clip of other sizes, not finite, twice the same id, or no clip at all.
    """
    clips = iter(clips)
    first = next(clips, None)
    if first is None:
        raise DataError(f"no clips to write into {out}")
    snippets = next(iter(first.streams.values())).shape[0]
    dims = {name: array.shape[1] for name, array in sorted(first.streams.items())}
    shards: list[dict[str, Any]] = []
    seen: set[str] = set()
    rest = chain([first], clips)
    while block := list(islice(rest, clips_per_shard)):
        for clip in block:
            clip.check(snippets, dims)
            if clip.id in seen:
                raise DataError(f"clip {clip.id} occurs twice", remedy="Ids must be unique")
            seen.add(clip.id)
        shards.append(_write_shard(block, out / f"shard-{len(shards):06d}.tar", snippets, dims))
    manifest = {
        "format": FORMAT,
        "clips": len(seen),
        "snippets": snippets,
        "streams": {name: {"dim": dim, "dtype": "float16"} for name, dim in dims.items()},
        "extractor": extractor,
        "source": source or {},
        "shards": shards,
    }
    write_json(out / MANIFEST, manifest)
    return ShardSet(out)


class ShardSet:
    """A shard set opened for reading; clips are numbered 0..len-1 in shard order.

    Raises:
        DataError: if the manifest is missing or a shard is missing or of another size than it
            says, naming the shard.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            raise DataError(
                f"{self.folder} is no shard set: {MANIFEST} is missing",
                remedy="Make one with tools/pack.py, or let a cut-off run of it finish",
            ) from None
        except ValueError:
            raise DataError(f"{path} is not JSON") from None
        if not isinstance(self.manifest, dict) or self.manifest.get("format") != FORMAT:
            raise DataError(f"{path} is no manifest of the format {FORMAT}")
        self.digest = sha256(path)
        self.snippets: int = self.manifest["snippets"]
        self.dims = {name: spec["dim"] for name, spec in self.manifest["streams"].items()}
        self.shards = [Shard(self.folder, entry, self) for entry in self.manifest["shards"]]
        for shard in self.shards:
            shard.check_size()
        self.starts = np.cumsum([0] + [shard.clips for shard in self.shards])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def gather(self, clips: NDArray[np.integer]) -> dict[str, NDArray[np.float16]]:
        """The features of `clips [B]`: one float16 `[B, T, D]` per stream, in that order.

        Raises:
            DataError: for a feature that is not finite, naming shard and clip.
        """
        out = {
            name: np.empty((len(clips), self.snippets, dim), np.float16)
            for name, dim in self.dims.items()
        }
        owners = np.searchsorted(self.starts, clips, side="right") - 1
        for owner in np.unique(owners):
            (rows,) = np.nonzero(owners == owner)
            shard = self.shards[owner]
            for name, array in out.items():
                array[rows] = shard.read(name, clips[rows] - self.starts[owner])
        for name, array in out.items():
            # NumPy tests float16 one number at a time; its bits say the same, ten times as fast.
            largest = (array.view(np.uint16) & 0x7FFF).max((1, 2), initial=0)
            bad = np.flatnonzero(largest >= 0x7C00)
            if bad.size:
                shard = self.shards[owners[bad[0]]]
                clip = self.ids[clips[bad[0]]]
                raise DataError(f"{shard.path}: clip {clip}: {name} is not finite")
        return out

    @cached_property
    def ids(self) -> list[str]:
        """Source ids, in shard order."""
        return [clip for shard in self.shards for clip in shard.index["ids"]]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Real snippets of each clip, `[N]`; the rest up to T is padding."""
        return np.array([n for shard in self.shards for n in shard.index["lengths"]])

    @cached_property
    def labels(self) -> list[tuple[str, ...] | None]:
        """Weak labels of each clip, `None` where unknown."""
        rows = (row for shard in self.shards for row in shard.index["labels"])
        return [None if row is None else tuple(row) for row in rows]


@dataclass(frozen=True)
class Shard:
    """One tar of a shard set."""

    folder: Path
    entry: dict[str, Any]
    owner: ShardSet

    @property
    def path(self) -> Path:
        return self.folder / str(self.entry["name"])

    @property
    def clips(self) -> int:
        return int(self.entry["clips"])

    def check_size(self) -> None:
        """Raise `DataError` if the tar is missing or has another size than the manifest says."""
        if not self.path.is_file():
            raise DataError(
                f"shard {self.path} is missing",
                remedy="Copy it again, or pack the shard set again",
            )
        size = self.path.stat().st_size
        if size != self.entry["bytes"]:
            raise DataError(
                f"shard {self.path} has {size} bytes, its manifest says {self.entry['bytes']}",
                remedy="It was cut off or changed: copy it again, or pack the shard set again",
            )

    @cached_property
    def index(self) -> dict[str, Any]:
        """Ids, lengths, labels and offsets; built from the tar when the file is missing."""
        path = self.path.with_suffix(".index.json")
        try:
            index: dict[str, Any] = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            index = index_shard(self.path, self.owner.snippets, self.owner.dims)
        if len(index["ids"]) != self.clips:
            raise DataError(
                f"{self.path} holds {len(index['ids'])} clips, its manifest says {self.clips}"
            )
        return index

    @cached_property
    def _records(self) -> NDArray[np.uint8]:
        stride = self.index["stride"]
        data = np.memmap(self.path, np.uint8, "r")
        return data[: self.clips * stride].reshape(self.clips, stride)

    def read(self, stream: str, rows: NDArray[np.integer]) -> NDArray[np.float16]:
        """Features of the clips in `rows [B]` of this shard: float16 `[B, T, D]`."""
        snippets, dim = self.owner.snippets, self.owner.dims[stream]
        start = self.index["offsets"][stream]
        raw = self._records[:, start : start + 2 * snippets * dim][rows]
        return raw.view("<f2").reshape(len(rows), snippets, dim)


def index_shard(path: Path, snippets: int, dims: dict[str, int]) -> dict[str, Any]:
    """Walk a tar once and tell where its arrays are.

    Raises:
        DataError: naming tar and clip, for a missing or foreign member, an array of other dims
            than `[snippets, dims[stream]]` float16, or records that are not of one size.
    """
    ids, lengths, labels = [], [], []
    starts: list[int] = []
    layouts: set[tuple[tuple[str, int], ...]] = set()
    suffixes = [*(f"{name}.npy" for name in dims), "json"]
    try:
        with tarfile.open(path, "r:") as tar:
            members = iter(tar)
            while record := list(islice(members, len(suffixes))):
                key = record[0].name.partition(".")[0]
                if [m.name for m in record] != [f"{key}.{suffix}" for suffix in suffixes]:
                    raise DataError(
                        f"{path}: clip {decode_key(key)} has the members "
                        f"{[m.name for m in record]}, expected {suffixes}"
                    )
                starts.append(record[0].offset)
                try:
                    offsets = {
                        name: _array_offset(tar, member, path, [snippets, dim])
                        for (name, dim), member in zip(dims.items(), record[:-1], strict=True)
                    }
                    meta = json.loads(_file(tar, record[-1], path).read())
                    ids.append(meta["id"])
                    lengths.append(meta["length"])
                    labels.append(meta["labels"])
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(
                        f"{path}: clip {decode_key(key)} is damaged or foreign: {error!r}"
                    ) from None
                layouts.add(tuple((name, at - starts[-1]) for name, at in offsets.items()))
            end = tar.offset
    except (tarfile.TarError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}", remedy="Copy or pack it again") from None
    strides = set(np.diff([*starts, end]).tolist())
    if len(layouts) != 1 or len(strides) != 1 or starts[0] != 0:
        raise DataError(f"{path}: its records are not of one size", remedy="Pack it again")
    return {
        "stride": strides.pop(),
        "offsets": dict(layouts.pop()),
        "ids": ids,
        "lengths": lengths,
        "labels": labels,
    }


def _array_offset(
    tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, shape: list[int]
) -> int:
    """Where the numbers of an npy member begin in the tar."""
    file = _file(tar, member, path)
    np.lib.format.read_magic(file)
    found, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if list(found) != shape or fortran or dtype != np.dtype("<f2"):
        raise DataError(
            f"{path}: {member.name} is {dtype} {list(found)}, the manifest says float16 {shape}",
            remedy="Clips of other sizes belong into a shard set of their own",
        )
    return member.offset_data + file.tell()


def _file(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> IO[bytes]:
    file = tar.extractfile(member) if member.isreg() else None
    if file is None:
        raise DataError(f"{path}: {member.name} is not a plain file")
    return file


def _write_shard(
    clips: list[Clip], path: Path, snippets: int, dims: dict[str, int]
) -> dict[str, Any]:
    metas = [_meta(clip) for clip in clips]
    width = max(map(len, metas))
    with staged(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for clip, meta in zip(clips, metas, strict=True):
                key = encode_key(clip.id)
                if len(key) + max(map(len, dims)) + len("..npy") > 100:
                    raise DataError(f"clip {clip.id}: its id is too long for a tar")
                for name in dims:
                    _add(tar, f"{key}.{name}.npy", _npy(clip, name))
                _add(tar, f"{key}.json", meta.ljust(width))
        index = index_shard(temporary, snippets, dims)
        write_json(path.with_suffix(".index.json"), index)
        return {
            "name": path.name,
            "clips": len(clips),
            "bytes": temporary.stat().st_size,
            "sha256": sha256(temporary),
        }


def _meta(clip: Clip) -> bytes:
    length = clip.length or next(iter(clip.streams.values())).shape[0]
    labels = None if clip.labels is None else list(clip.labels)
    return json.dumps({"id": clip.id, "length": length, "labels": labels}).encode()


def _npy(clip: Clip, stream: str) -> bytes:
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(clip.streams[stream], "<f2")
    if not np.isfinite(half).all():
        raise DataError(
            f"clip {clip.id}: stream {stream} exceeds float16 (65504)",
            remedy="Scale its features down before packing",
        )
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, half, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))
