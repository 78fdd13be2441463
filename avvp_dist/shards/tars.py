"""The tar of a shard: how it is written, and how one of unknown origin is read with suspicion.

A clip is `KEY.STREAM.npy` (float16 or float32 `[T, D]`) per stream and one `KEY.json`. Tars written
here are regular: members are uncompressed and of fixed size, so that record i starts at i times the
record size. Tars of others may order and size their members differently.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from avvp_dist.commit import sha256, staged
from avvp_dist.errors import DataError
from avvp_dist.shards.schema import DTYPES, Clip, decode_key, encode_key, finite, tar_key

_PICKLES = ("pyd", "pkl", "pickle", "pth", "pt", "npz")
_MAXIMUM_JSON = 1 << 20
_END = 2 * tarfile.BLOCKSIZE
"""Minimum number of zero bytes at the end of a tar."""
_REMEDY = "Copy it again, or make it again"


@dataclass(frozen=True)
class Scan:
    """Content of a tar: size, SHA-256, T, dtype, its clips in order, and where their arrays are.

    `offsets[clip][stream]` is the byte at which the numbers `[T, D]` begin, streams sorted by
    name. A `length` of 0 marks a clip that is not finite. `ranges` are minimum and maximum of each
    stream. The values are plain, so that a scan can be kept as JSON.
    """

    name: str
    bytes: int
    sha256: str
    snippets: int
    dtype: str
    dims: dict[str, int]
    ids: list[str]
    lengths: list[int]
    labels: list[list[str] | None]
    offsets: list[list[int]]
    ranges: dict[str, list[float]]


@dataclass(frozen=True)
class ClipJson:
    """Content of a clip's `KEY.json`; None for what is unknown."""

    id: str | None = None
    length: int | None = None
    labels: list[str] | None = None

    @classmethod
    def parse(cls, text: bytes) -> ClipJson:
        """The entries known here of a JSON object.

        Raises:
            ValueError: if it is no JSON object, or an entry is of another type.
        """
        entries = json.loads(text)
        if not isinstance(entries, dict):
            raise ValueError("it is no mapping")
        clip, length, labels = (entries.get(name) for name in ("id", "length", "labels"))
        if not (labels is None or (type(labels) is list and all(type(x) is str for x in labels))):
            raise ValueError("labels are no list of names")
        if not (clip is None or type(clip) is str):
            raise ValueError("id is no text")
        (clip or "").encode()  # half a surrogate pair is no text either
        if not (length is None or type(length) is int):
            raise ValueError("length is no whole number")
        return cls(clip, length, labels)


@dataclass(frozen=True)
class _Array:
    """First byte of an npy member's numbers in the tar, their shape and type."""

    start: int
    shape: tuple[int, ...]
    dtype: str


@dataclass
class _Members:
    """Members of one clip as they are met in a tar."""

    arrays: dict[str, _Array] = field(default_factory=dict)
    meta: ClipJson | None = None

    @property
    def kinds(self) -> dict[str, str]:
        """Type and shape of each array."""
        return {name: f"{x.dtype} {list(x.shape)}" for name, x in sorted(self.arrays.items())}


def write_tar(clips: list[Clip], path: Path) -> Scan:
    """Write `padded` clips of equal sizes under `path`, whole or not at all.

    Equal clips give equal bytes.

    Raises:
        DataError: for an id that is too long for a tar, or a full disk.
    """
    dims = {name: array.shape[1] for name, array in sorted(clips[0].streams.items())}
    metas = [
        json.dumps({"id": c.id, "length": c.length, "labels": c.labels}).encode() for c in clips
    ]
    width = max(map(len, metas))
    offsets, at = [], 0
    with staged(path) as temporary:
        with temporary.open("wb") as file:
            for clip, meta in zip(clips, metas, strict=True):
                record, starts = _record(clip, dims, meta.ljust(width))
                file.write(record)
                offsets.append([at + start for start in starts])
                at += len(record)
            file.write(bytes(_END + -(at + _END) % tarfile.RECORDSIZE))
        size, digest = temporary.stat().st_size, sha256(temporary)
    return Scan(
        name=path.name,
        bytes=size,
        sha256=digest,
        snippets=next(iter(clips[0].streams.values())).shape[0],
        dtype=next(iter(clips[0].streams.values())).dtype.name,
        dims=dims,
        ids=[clip.id for clip in clips],
        lengths=[clip.length or 0 for clip in clips],
        labels=[None if clip.labels is None else list(clip.labels) for clip in clips],
        offsets=offsets,
        ranges={
            name: [
                min(float(clip.streams[name].min()) for clip in clips),
                max(float(clip.streams[name].max()) for clip in clips),
            ]
            for name in dims
        },
    )


def _record(clip: Clip, dims: dict[str, int], meta: bytes) -> tuple[bytes, list[int]]:
    """Bytes of a clip's members, and the offset in them of each stream's numbers."""
    key = tar_key(clip.id, dims)
    parts: list[bytes] = []
    starts = []
    for name in dims:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, clip.streams[name], version=(1, 0), allow_pickle=False)
        npy = buffer.getvalue()
        header = len(npy) - clip.streams[name].nbytes
        starts.append(sum(map(len, parts)) + tarfile.BLOCKSIZE + header)
        parts += _member(f"{key}.{name}.npy", npy)
    return b"".join(parts + _member(f"{key}.json", meta)), starts


def _member(name: str, data: bytes) -> list[bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    return [info.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % tarfile.BLOCKSIZE)]


def scan_tar(path: Path, *, skip_incomplete: bool = False) -> Scan:
    """Read a tar of unknown origin once and describe its content.

    The members of a clip may lie anywhere in it. Members of other kinds are ignored. The first
    clip with arrays fixes the streams, T, the dims and the dtype.

    Args:
        skip_incomplete: leave out the clips that lack arrays.

    Raises:
        DataError: naming tar, clip and member, for anything damaged, incomplete or hostile: a cut
            tar, a broken header, links, absolute or upward paths, pickles, object arrays, other
            dtypes and dims, a member or a clip that occurs twice.
    """
    clips: dict[str, _Members] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in _plain_files(tar, path):
                folder, slash, base = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = base.partition(".")
                key = folder + slash + stem
                _add(tar, member, path, clips.setdefault(key, _Members()), key, suffix)
            check_end(file, path, tar.offset)
    except (tarfile.TarError, ValueError, OSError, EOFError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}", remedy=_REMEDY) from None
    clips = {key: clip for key, clip in clips.items() if clip.arrays or clip.meta}
    if not any(members.arrays for members in clips.values()):
        raise DataError(f"{path} holds no clips: no member is named KEY.STREAM.npy")
    return _scan(path, _complete(path, clips, skip_incomplete))


def _complete(path: Path, clips: dict[str, _Members], skip: bool) -> dict[str, _Members]:
    """The clips that have an array of each stream of the first one that has any.

    Raises:
        DataError: for a clip that has not, unless such clips are to be skipped.
    """
    streams = next(set(members.arrays) for members in clips.values() if members.arrays)
    lacking = {key: streams - set(members.arrays) for key, members in clips.items()}
    lacking = {key: names for key, names in lacking.items() if names}
    if lacking and not skip:
        key, names = next(iter(lacking.items()))
        has = "a .json and no array" if not clips[key].arrays else f"no {', '.join(sorted(names))}"
        raise DataError(
            f"{path}: clip {key} has {has}, as {len(lacking)} of {len(clips)} clips",
            remedy=f"Write {key}.{min(names)}.npy, or leave such clips out with: avvp inspect "
            f"{path.parent} skip_incomplete=true",
        )
    if lacking:
        print(f"{path}: {len(lacking)} clips without all arrays are left out, first {min(lacking)}")
    return {key: members for key, members in clips.items() if key not in lacking}


def _plain_files(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """Members that are files; raise `DataError` for those that are hostile."""
    size = path.stat().st_size
    for member in tar:
        name = member.name
        if member.isdir() or is_of_a_file_manager(name):
            continue
        if not member.isreg() or member.issparse():
            raise DataError(f"{path}: {name} is not a plain file but a link or a device")
        if name.startswith("/") or ".." in Path(name).parts:
            raise DataError(f"{path}: {name} is no path inside the tar")
        if member.size < 0 or member.offset_data + member.size > size:
            raise DataError(
                f"{path}: {name} has {member.size} bytes, more than the tar holds", remedy=_REMEDY
            )
        yield member


def is_of_a_file_manager(name: str) -> bool:
    """Whether macOS has put the member beside those of the clips."""
    folder, _, base = name.rpartition("/")
    return base.startswith("._") or base == ".DS_Store" or "__MACOSX" in folder.split("/")


def _add(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    path: Path,
    clip: _Members,
    key: str,
    suffix: str,
) -> None:
    """Add a member to its clip: an array or its JSON. Other members are ignored."""
    if suffix.rpartition(".")[2] in _PICKLES:
        raise DataError(f"{path}: {member.name} may hold a pickle, which is never opened")
    stream, _, kind = suffix.rpartition(".")
    if kind == "npy" and stream:
        if stream in clip.arrays:
            raise DataError(f"{path}: clip {decode_key(key)} has {member.name} twice")
        clip.arrays[stream] = _array(tar, member, path)
    elif suffix == "json":
        if clip.meta is not None:
            raise DataError(f"{path}: clip {decode_key(key)} occurs twice")
        clip.meta = _meta(tar, member, path)


def _array(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> _Array:
    file = _file(tar, member)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(file)
    except Exception as error:  # of many types, because NumPy parses Python there
        raise DataError(f"{path}: {member.name} is no whole npy file: {error}") from None
    start, size = member.offset_data + file.tell(), dtype.itemsize
    fits = dtype.str[0] != ">" and dtype.name in DTYPES and len(shape) == 2 and min(shape) > 0
    if not fits or fortran or start % size:
        raise DataError(
            f"{path}: {member.name} is {dtype} {list(shape)}, expected {' or '.join(DTYPES)} "
            "[T, D]",
            remedy=f"Write the features as C-ordered {' or '.join(DTYPES)} matrices",
        )
    if file.tell() + size * shape[0] * shape[1] != member.size:
        raise DataError(f"{path}: {member.name} is not of the size that its header says")
    return _Array(start, shape, dtype.name)


def _meta(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> ClipJson:
    if member.size > _MAXIMUM_JSON:
        raise DataError(f"{path}: {member.name} has {member.size} bytes, no JSON of a clip")
    try:
        return ClipJson.parse(_file(tar, member).read())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {member.name} is damaged or foreign: {error}") from None


def _file(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None  # it is a regular file
    return file


def check_end(file: IO[bytes], name: Path | str, offset: int) -> None:
    """Raise `DataError` unless only zeros follow, because tarfile stops silently at bad headers."""
    file.seek(offset)
    if len(rest := file.read(_END)) < _END:
        raise DataError(f"{name} is cut off: it has no end", remedy=_REMEDY)
    while rest:
        if rest.count(0) != len(rest):
            raise DataError(f"{name} is damaged: no header at byte {offset}", remedy=_REMEDY)
        rest = file.read(1 << 20)


def _scan(path: Path, clips: dict[str, _Members]) -> Scan:
    first = next(members for members in clips.values() if members.arrays)
    dims = {name: array.shape[1] for name, array in sorted(first.arrays.items())}
    (snippets, dtype), *others = {(array.shape[0], array.dtype) for array in first.arrays.values()}
    if others:
        raise DataError(
            f"{path}: the streams of its first clip differ in length or type: {first.kinds}",
            remedy="Write them in equal lengths and in one type",
        )
    ids, lengths, labels, offsets = [], [], [], []
    for key, members in clips.items():
        meta = members.meta or ClipJson()
        clip = _clip_id(path, key, meta)
        if members.kinds != first.kinds:
            raise DataError(
                f"{path}: clip {clip} has {members.kinds}, the first one {first.kinds}",
                remedy="Clips of other sizes or types belong into a shard set of their own",
            )
        length = snippets if meta.length is None else meta.length
        if not 0 < length <= snippets:
            raise DataError(f"{path}: clip {clip}: length {length} is not within {snippets}")
        ids.append(clip)
        lengths.append(length)
        labels.append(meta.labels)
        offsets.append([members.arrays[name].start for name in dims])
    whole, ranges = _read_values(path, snippets, dims, np.dtype(dtype), offsets)
    return Scan(
        name=path.name,
        bytes=path.stat().st_size,
        sha256=sha256(path),
        snippets=snippets,
        dtype=dtype,
        dims=dims,
        ids=ids,
        lengths=[length if fine else 0 for length, fine in zip(lengths, whole, strict=True)],
        labels=labels,
        offsets=offsets,
        ranges=ranges,
    )


def _clip_id(path: Path, key: str, meta: ClipJson) -> str:
    """The id in the clip's JSON, or else its key, decoded if `encode_key` may have made it."""
    clip = meta.id or key
    if meta.id is None:
        with suppress(ValueError):
            decoded = decode_key(key)
            clip = decoded if encode_key(decoded) == key else key
    try:
        clip.encode()
    except ValueError as error:
        raise DataError(f"{path}: {key!a} is no key of a clip: {error}") from None
    if "\0" in clip:  # the index could not tell it from the same id without
        raise DataError(f"{path}: {clip!a} is no id of a clip")
    return clip


def _read_values(
    path: Path,
    snippets: int,
    dims: dict[str, int],
    dtype: np.dtype[np.floating],
    offsets: list[list[int]],
) -> tuple[list[bool], dict[str, list[float]]]:
    """Whether each clip is finite, and minimum and maximum of each stream over finite clips."""
    data = np.memmap(path, np.uint8, "r")
    whole = []
    ranges: dict[str, list[float]] = {}
    for starts in offsets:
        views = [
            data[start : start + dtype.itemsize * snippets * dim].view(dtype)
            for start, dim in zip(starts, dims.values(), strict=True)
        ]
        whole.append(all(finite(view) for view in views))
        for name, view in zip(dims, views, strict=True) if whole[-1] else ():
            low, high = ranges.get(name, [np.inf, -np.inf])
            ranges[name] = [min(low, float(view.min())), max(high, float(view.max()))]
    return whole, ranges
