"""The tar of a shard: how it is written, and how one of unknown origin is read with suspicion.

A clip is `KEY.STREAM.npy` (float16 `[T, D]`) per stream and one `KEY.json`. What is written here
is regular: uncompressed members of fixed sizes, so that record i starts at i times its stride.
Others may order and size their members as they like.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from avvp_dist.commit import sha256, staged
from avvp_dist.errors import DataError
from avvp_dist.shards.schema import Clip, decode_key, encode_key, finite

_PICKLES = ("pyd", "pkl", "pickle", "pth", "pt", "npz")
_LARGEST_JSON = 1 << 20
_END = 2 * tarfile.BLOCKSIZE
"""A tar ends with at least so many zeros."""
_REMEDY = "Copy it again, or pack the shard set again"


@dataclass
class Scan:
    """What is in a tar: its bytes, its clips in order, and where their arrays are.

    `offsets[clip][stream]` is the byte at which the `[T, D]` numbers begin, streams sorted by
    name; a `length` of 0 marks a clip that is not finite; `ranges` are the least and the largest
    value of each stream.
    """

    name: str
    bytes: int
    sha256: str
    snippets: int
    dims: dict[str, int]
    ids: list[str]
    lengths: list[int]
    labels: list[list[str] | None]
    offsets: list[list[int]]
    ranges: dict[str, list[float]]


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
        path.name,
        size,
        digest,
        next(iter(clips[0].streams.values())).shape[0],
        dims,
        [clip.id for clip in clips],
        [clip.length or 0 for clip in clips],
        [None if clip.labels is None else list(clip.labels) for clip in clips],
        offsets,
        {
            name: [
                min(float(clip.streams[name].min()) for clip in clips),
                max(float(clip.streams[name].max()) for clip in clips),
            ]
            for name in dims
        },
    )


def _record(clip: Clip, dims: dict[str, int], meta: bytes) -> tuple[bytes, list[int]]:
    """The bytes of a clip's members, and where in them its numbers begin."""
    key = encode_key(clip.id)
    if len(key) + max(map(len, dims)) + len("..npy") > 100:
        raise DataError(f"clip {clip.id}: its id is too long for a tar")
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


def scan_tar(path: Path) -> Scan:
    """Read a tar of unknown origin once and tell what is in it.

    Members of a clip may lie anywhere in it; those of other kinds than ours are left alone. The
    first clip fixes the streams, T and the dims.

    Raises:
        DataError: naming tar, clip and member, for anything damaged, incomplete or hostile: a cut
            tar, a broken header, links, absolute or upward paths, pickles, object arrays, other
            dtypes and dims, a member or a clip that occurs twice.
    """
    arrays: dict[str, dict[str, tuple[int, tuple[int, ...]]]] = {}
    metas: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in _members(tar, path):
                folder, slash, base = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = base.partition(".")
                key = folder + slash + stem
                _add(tar, member, path, arrays.setdefault(key, {}), metas, key, suffix)
            _check_end(path, tar.offset)
    except (tarfile.TarError, ValueError, OSError, EOFError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}", remedy=_REMEDY) from None
    arrays = {key: found for key, found in arrays.items() if found or key in metas}
    if not arrays:
        raise DataError(f"{path} holds no clips: no member is named KEY.STREAM.npy")
    return _scan(path, arrays, metas)


def _members(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    size = path.stat().st_size
    for member in tar:
        if member.isdir():
            continue
        name = member.name
        if not member.isreg() or member.issparse():
            raise DataError(f"{path}: {name} is not a plain file but a link or a device")
        if name.startswith("/") or ".." in Path(name).parts:
            raise DataError(f"{path}: {name} is no path inside the tar")
        if member.size < 0 or member.offset_data + member.size > size:
            raise DataError(
                f"{path}: {name} has {member.size} bytes, more than the tar holds", remedy=_REMEDY
            )
        yield member


def _add(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    path: Path,
    found: dict[str, tuple[int, tuple[int, ...]]],
    metas: dict[str, dict[str, Any]],
    key: str,
    suffix: str,
) -> None:
    """Take one member of a clip: an array, its JSON, or something that is left alone."""
    if suffix.rpartition(".")[2] in _PICKLES:
        raise DataError(f"{path}: {member.name} may hold a pickle, which is never opened")
    stream, _, kind = suffix.rpartition(".")
    if kind == "npy" and stream:
        if stream in found:
            raise DataError(f"{path}: clip {decode_key(key)} has {member.name} twice")
        found[stream] = _array(tar, member, path)
    elif suffix == "json":
        if key in metas:
            raise DataError(f"{path}: clip {decode_key(key)} occurs twice")
        metas[key] = _meta(tar, member, path)


def _array(
    tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path
) -> tuple[int, tuple[int, ...]]:
    """Where the numbers of an npy member begin in the tar, and their shape."""
    file = _file(tar, member)
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file)
    except Exception as error:  # of many kinds: numpy parses Python there
        raise DataError(f"{path}: {member.name} is no whole npy file: {error}") from None
    at = member.offset_data + file.tell()
    if dtype != np.dtype("<f2") or len(shape) != 2 or min(shape) < 1 or fortran or at % 2:
        raise DataError(
            f"{path}: {member.name} is {dtype} {list(shape)}, expected float16 [T, D]",
            remedy="Write the features as C-ordered float16 matrices",
        )
    if file.tell() + 2 * shape[0] * shape[1] != member.size:
        raise DataError(f"{path}: {member.name} has not the size that its header says")
    return at, shape


def _meta(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> dict[str, Any]:
    if member.size > _LARGEST_JSON:
        raise DataError(f"{path}: {member.name} has {member.size} bytes, no JSON of a clip")
    try:
        meta = json.loads(_file(tar, member).read())
        labels, length = meta.get("labels"), meta.get("length")
        if not (labels is None or (type(labels) is list and all(type(x) is str for x in labels))):
            raise ValueError("labels are no list of names")
        if not (meta.get("id") is None or type(meta["id"]) is str):
            raise ValueError("id is no text")
        (meta.get("id") or "").encode()
        if not (length is None or type(length) is int):
            raise ValueError("length is no whole number")
        return {"id": meta.get("id"), "labels": labels, "length": length}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: {member.name} is damaged or foreign: {error}") from None


def _file(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None  # it is a regular file
    return file


def _check_end(path: Path, offset: int) -> None:
    """tarfile stops in silence at a cut or at a broken header: here there must be zeros."""
    with path.open("rb") as file:
        file.seek(offset)
        if len(rest := file.read(_END)) < _END:
            raise DataError(f"{path} is cut off: it has no end", remedy=_REMEDY)
        while rest:
            if rest.count(0) != len(rest):
                raise DataError(f"{path} is damaged: no header at byte {offset}", remedy=_REMEDY)
            rest = file.read(1 << 20)


def _scan(
    path: Path,
    arrays: dict[str, dict[str, tuple[int, tuple[int, ...]]]],
    metas: dict[str, dict[str, Any]],
) -> Scan:
    first = next(iter(arrays.values()))
    shapes = {name: shape for name, (_, shape) in sorted(first.items())}
    heights = {shape[0] for shape in shapes.values()}
    if len(heights) != 1:
        raise DataError(f"{path}: the streams of its first clip differ in length: {shapes}")
    snippets = heights.pop()
    ids, lengths, labels, offsets = [], [], [], []
    for key, found in arrays.items():
        meta = metas.get(key, {"id": None, "labels": None, "length": None})
        try:
            clip = meta["id"] or decode_key(key)
        except ValueError as error:
            raise DataError(f"{path}: {key!a} is no key of a clip: {error}") from None
        if "\0" in clip:  # the index could not tell it from the same id without
            raise DataError(f"{path}: {clip!a} is no id of a clip")
        if {name: shape for name, (_, shape) in found.items()} != shapes:
            raise DataError(
                f"{path}: clip {clip} has { ({n: list(s) for n, (_, s) in found.items()}) }, the "
                f"first one { {name: list(shape) for name, shape in shapes.items()} }",
                remedy="Clips of other sizes belong into a shard set of their own",
            )
        length = snippets if meta["length"] is None else meta["length"]
        if not 0 < length <= snippets:
            raise DataError(f"{path}: clip {clip}: length {length} is not within {snippets}")
        ids.append(clip)
        lengths.append(length)
        labels.append(meta["labels"])
        offsets.append([found[name][0] for name in shapes])
    dims = {name: shape[1] for name, shape in shapes.items()}
    ranges = _read_all(path, snippets, dims, lengths, offsets)
    size = path.stat().st_size
    return Scan(
        path.name, size, sha256(path), snippets, dims, ids, lengths, labels, offsets, ranges
    )


def _read_all(
    path: Path,
    snippets: int,
    dims: dict[str, int],
    lengths: list[int],
    offsets: list[list[int]],
) -> dict[str, list[float]]:
    """The range of each stream; the length of a clip that is not finite becomes 0."""
    data = np.memmap(path, np.uint8, "r")
    ranges: dict[str, list[float]] = {}
    for clip, starts in enumerate(offsets):
        views = [
            data[start : start + 2 * snippets * dim].view("<f2")
            for start, dim in zip(starts, dims.values(), strict=True)
        ]
        if not all(finite(view) for view in views):
            lengths[clip] = 0
            continue
        for name, view in zip(dims, views, strict=True):
            low, high = ranges.get(name, [np.inf, -np.inf])
            ranges[name] = [min(low, float(view.min())), max(high, float(view.max()))]
    return ranges
