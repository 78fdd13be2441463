"""The index of a shard set, `index.npy`: one row per clip, and how it is made from scanned tars.

The index is read as a memory map, so that it costs no memory however many clips there are.
"""

from __future__ import annotations

import errno
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from avvp_dist.commit import MANIFEST, check_sha256, sha256, staged
from avvp_dist.errors import DataError
from avvp_dist.shards.manifest import INDEX, FileEntry, Manifest, Shard, StreamEntry
from avvp_dist.shards.tars import Scan, scan_tar

COLUMNS = ("id", "hash", "length", "labels", "offsets")
"""Columns of the index: a clip's id, the first 8 bytes of the id's SHA-256, its number of snippets,
codes into the manifest's `classes`, and the byte in the tar at which each stream's numbers begin.
"""

NO_LABEL, UNKNOWN = 0xFFFF, 0xFFFE
"""In the index's `labels`: an empty slot; in the first slot: the clip's labels are unknown."""

PLAN = ".pack"
"""A folder inside a shard set that is not finished, because it is being packed or written."""


def owners_of(
    numbers: NDArray[np.integer], starts: Sequence[int] | NDArray[np.integer]
) -> NDArray[np.integer]:
    """Part that each of `numbers [B]` lies in, of parts that follow each other.

    Args:
        starts: first number of each part and, last, the end of the last part, `[parts + 1]`.
    """
    return np.searchsorted(starts, numbers, side="right") - 1


def tars_in(folder: Path) -> list[Path]:
    """Tars of a folder by name, without hidden ones."""
    return sorted(folder.glob("[!.]*.tar"))


def index_tars(folder: Path, workers: int = 1, *, skip_incomplete: bool = False) -> None:
    """Make the manifest and the index of a folder of WebDataset tars, reading each tar once.

    Args:
        skip_incomplete: leave out the clips that lack arrays.
        workers: number of processes that read. More than one needs a `__main__` that can be
            imported.

    Raises:
        DataError: if there are no tars, packing is not finished there, a tar is damaged, or the
            folder cannot be written to.
    """
    tars = tars_in(folder) if folder.is_dir() else []
    scan = partial(scan_tar, skip_incomplete=skip_incomplete)
    if not tars or (folder / PLAN).exists():
        raise DataError(
            f"{folder} is no shard set: {MANIFEST} is missing",
            remedy="Make one with avvp pack, or let a cut-off run of it finish",
        )
    try:
        with FileLock(folder / ".index.lock"):
            if (folder / MANIFEST).exists():
                return  # another process was faster
            if workers == 1:
                scans = list(map(scan, tqdm(tars, "indexing", unit=" tars")))
            else:
                with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
                    results = pool.map(scan, tars)
                    scans = list(tqdm(results, "indexing", len(tars), unit=" tars"))
            write_manifest(folder, scans, extractor="")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise DataError(
            f"{folder}: {MANIFEST} cannot be written: {error.strerror}",
            remedy="Run avvp inspect as someone who may write there",
        ) from None


def write_manifest(
    out: Path,
    scans: Sequence[Scan],
    *,
    extractor: str,
    source: Mapping[str, object] | None = None,
) -> None:
    """Write `index.npy`, then `manifest.json`, for the tars in `out` that `scans` describe.

    Raises:
        DataError: for tars of unequal T, dims or dtype, or a clip that occurs twice, naming it.
    """
    check_same_sizes(scans)
    ids = [clip for scan in scans for clip in scan.ids]
    twice = [clip for clip, count in Counter(ids).most_common(1) if count > 1]
    if twice:
        raise DataError(f"clip {twice[0]} occurs twice", remedy="Ids must be unique")
    classes = sorted({c for scan in scans for names in scan.labels for c in names or ()})
    if len(classes) > UNKNOWN:
        raise DataError(
            f"{out}: {len(classes)} different labels, more than {UNKNOWN}",
            remedy="Labels are classes: write texts into another member of the clip",
        )
    with staged(out / INDEX) as temporary, temporary.open("wb") as file:
        np.save(file, _rows(scans, ids, classes), allow_pickle=False)
    first = scans[0]
    Manifest(
        clips=len(ids),
        snippets=first.snippets,
        streams={name: _stream(name, dim, scans) for name, dim in first.dims.items()},
        extractor=extractor,
        classes=tuple(classes),
        source=source or {},
        index=FileEntry((out / INDEX).stat().st_size, sha256(out / INDEX)),
        shards=tuple(Shard(s.name, len(s.ids), s.bytes, s.sha256) for s in scans),
    ).save(out)


def check_same_sizes(scans: Sequence[Scan]) -> None:
    """Raise `DataError` naming the first tar that differs from the first in T, dims or dtype."""
    first = scans[0]
    if first.snippets > 255:
        raise DataError(f"{first.name}: clips of {first.snippets} snippets, more than 255")
    for scan in scans:
        if (scan.snippets, scan.dims, scan.dtype) != (first.snippets, first.dims, first.dtype):
            raise DataError(
                f"{scan.name} holds {scan.dims} x {scan.snippets} snippets in {scan.dtype} (first "
                f"clip {scan.ids[0]}), {first.name} {first.dims} x {first.snippets} in "
                f"{first.dtype}",
                remedy="Clips of other sizes belong into a shard set of their own",
            )


def load_index(path: Path, manifest: Manifest) -> NDArray[np.void]:
    """Rows of a shard set's index, as a memory map.

    Raises:
        DataError: naming the file, if it is not the manifest's, or points outside of the shards.
    """
    try:
        size = path.stat().st_size
        if size != manifest.index.bytes:
            raise DataError(f"{path} has {size} bytes, its manifest says {manifest.index.bytes}")
        check_sha256(path, sha256(path), manifest.index.sha256)
        index = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        _check_rows(index, manifest)
    except Exception as error:  # of many types, because NumPy parses Python in a file's header
        raise DataError(
            f"{path} is missing or damaged: {error}",
            remedy="Copy it again, or remove it with manifest.json to make both anew",
        ) from None
    return index


def _check_rows(index: NDArray[np.void], manifest: Manifest) -> None:
    """Raise `ValueError` unless the rows are of this manifest's clips and within its shards."""
    clips = [shard.clips for shard in manifest.shards]
    if len(index) != sum(clips):
        raise ValueError(f"it has {len(index)} rows for {sum(clips)} clips")
    if index.dtype.names != COLUMNS:
        raise ValueError(f"it has the columns {index.dtype.names}")
    sizes = np.repeat(np.array([shard.bytes for shard in manifest.shards], np.int64), clips)
    item = np.dtype(manifest.dtype).itemsize
    for column, dim in enumerate(manifest.dims.values()):
        starts = index["offsets"][:, column].astype(np.int64)
        last = sizes - item * manifest.snippets * dim
        # Reading outside of a mapped file would not raise an error but end the process.
        if ((starts < 0) | (starts > last) | (starts % item != 0)).any():
            raise ValueError("it points outside of its shards")


def _rows(scans: Sequence[Scan], ids: list[str], classes: list[str]) -> NDArray[np.void]:
    labels = [names for scan in scans for names in scan.labels]
    slots = max(1, *(len(names or ()) for names in labels)) if labels else 1
    names = [clip.encode() for clip in ids]
    index = np.zeros(
        len(ids),
        [
            ("id", f"S{max(1, *map(len, names))}"),
            ("hash", "<u8"),
            ("length", "u1"),
            ("labels", "<u2", (slots,)),
            ("offsets", "<u8", (len(scans[0].dims),)),
        ],
    )
    index["id"] = names
    index["hash"] = [int.from_bytes(hashlib.sha256(name).digest()[:8], "big") for name in names]
    index["length"] = [length for scan in scans for length in scan.lengths]
    index["offsets"] = [starts for scan in scans for starts in scan.offsets]
    index["labels"] = NO_LABEL
    code = {name: number for number, name in enumerate(classes)}
    for row, present in zip(index["labels"], labels, strict=True):
        if present is None:
            row[0] = UNKNOWN
        else:
            row[: len(present)] = [code[name] for name in present]
    return index


def _stream(name: str, dim: int, scans: Sequence[Scan]) -> StreamEntry:
    ranges = [scan.ranges[name] for scan in scans if name in scan.ranges]
    low = min((low for low, _ in ranges), default=None)
    high = max((high for _, high in ranges), default=None)
    return StreamEntry(dim, scans[0].dtype, low, high)
