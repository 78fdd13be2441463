"""What makes a folder of tars a shard set: `index.npy`, then `manifest.json`.

The index is one row a clip, read as a memory map: it costs no memory however many there are.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import MANIFEST, sha256, staged, write_json
from avvp_dist.errors import DataError
from avvp_dist.shards.exclusion import check_entry
from avvp_dist.shards.tars import Scan

FORMAT = "avvp-shards-2"
INDEX = "index.npy"

COLUMNS = ("id", "hash", "length", "labels", "offsets")
"""What the index knows of a clip: its id, the first 8 bytes of the id's SHA-256, its snippets,
codes into the manifest's `classes`, and where in the tar each stream's numbers begin."""

NO_LABEL, UNKNOWN = 0xFFFF, 0xFFFE
"""In the index's `labels`: an empty slot; in the first slot: nobody knows this clip's labels."""


def write_manifest(
    out: Path,
    scans: Sequence[Scan],
    *,
    extractor: str,
    source: dict[str, Any] | None = None,
) -> None:
    """Write `index.npy` and `manifest.json` of the tars in `out` that `scans` tell of.

    Raises:
        DataError: for shards of unequal sizes, or a clip that occurs twice, naming it.
    """
    check_alike(scans)
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
        np.save(file, _index(scans, ids, classes), allow_pickle=False)
    first = scans[0]
    manifest = {
        "format": FORMAT,
        "clips": len(ids),
        "snippets": first.snippets,
        "streams": {
            name: {
                "dim": dim,
                "dtype": "float16",
                "min": min((s.ranges[name][0] for s in scans if name in s.ranges), default=None),
                "max": max((s.ranges[name][1] for s in scans if name in s.ranges), default=None),
            }
            for name, dim in first.dims.items()
        },
        "extractor": extractor,
        "classes": classes,
        "source": source or {},
        "index": {"bytes": (out / INDEX).stat().st_size, "sha256": sha256(out / INDEX)},
        "shards": [
            {"name": s.name, "clips": len(s.ids), "bytes": s.bytes, "sha256": s.sha256}
            for s in scans
        ],
    }
    write_json(out / MANIFEST, manifest)


def check_alike(scans: Sequence[Scan]) -> None:
    """Raise `DataError` naming the first shard that differs from the first in T or dims."""
    first = scans[0]
    if first.snippets > 255:
        raise DataError(f"{first.name}: clips of {first.snippets} snippets, more than 255")
    for scan in scans:
        if (scan.snippets, scan.dims) != (first.snippets, first.dims):
            raise DataError(
                f"{scan.name} holds {scan.dims} x {scan.snippets} snippets (first clip "
                f"{scan.ids[0]}), {first.name} {first.dims} x {first.snippets}",
                remedy="Clips of other sizes belong into a shard set of their own",
            )


def _index(scans: Sequence[Scan], ids: list[str], classes: list[str]) -> NDArray[np.void]:
    rows = [names for scan in scans for names in scan.labels]
    slots = max(1, *(len(names or ()) for names in rows)) if rows else 1
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
    for row, labels in zip(index["labels"], rows, strict=True):
        if labels is None:
            row[0] = UNKNOWN
        else:
            row[: len(labels)] = [code[name] for name in labels]
    return index


def parse_manifest(text: bytes, path: str) -> dict[str, Any]:
    """The manifest of a shard set, its entries of the right kinds.

    Raises:
        DataError: naming `path`, if it is no such manifest.
    """
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{path} is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(
            f"{path} is no manifest of the format {FORMAT}",
            remedy="Remove the set and pack it again",
        )
    try:
        shards, index = manifest["shards"], manifest["index"]
        counts = [
            *(manifest[key] for key in ("clips", "snippets")),
            *(spec["dim"] for spec in manifest["streams"].values()),
            *(entry["bytes"] for entry in (*shards, index)),
            *(entry["clips"] for entry in shards),
        ]
        texts = [
            manifest["extractor"],
            *manifest["classes"],
            *(entry["sha256"] for entry in (*shards, index)),
            *(entry["name"] for entry in shards),
        ]
        keys = {frozenset(entry) for entry in shards}
    except (KeyError, TypeError, AttributeError):
        counts, texts, keys = [-1], [], set()
    if not (
        all(type(count) is int and count >= 0 for count in counts)
        and all(type(text) is str for text in texts)
        and keys <= {frozenset(("name", "clips", "bytes", "sha256"))}
    ):
        raise DataError(f"{path} is damaged: entries are missing or of other kinds")
    for entry in shards:
        if "/" in entry["name"] or entry["name"].startswith("."):
            raise DataError(f"{path}: {entry['name']!r} is no name of a shard")
    check_entry(manifest, path)
    return manifest


def load_index(path: Path, manifest: dict[str, Any]) -> NDArray[np.void]:
    """The rows of a shard set's index, as a memory map.

    Raises:
        DataError: naming the file, if it is not the manifest's, or points outside of the shards.
    """
    entry, shards = manifest["index"], manifest["shards"]
    clips = [shard["clips"] for shard in shards]
    try:
        if path.stat().st_size != entry["bytes"]:
            raise ValueError(f"it has {path.stat().st_size} bytes, not {entry['bytes']}")
        if sha256(path) != entry["sha256"]:
            raise ValueError("it has another SHA-256 than the manifest says")
        index = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        if len(index) != sum(clips):
            raise ValueError(f"it has {len(index)} rows for {sum(clips)} clips")
        if index.dtype.names != COLUMNS:
            raise ValueError(f"it has the columns {index.dtype.names}")
        sizes = np.repeat(np.array([shard["bytes"] for shard in shards], np.int64), clips)
        for column, spec in enumerate(manifest["streams"].values()):
            starts = index["offsets"][:, column].astype(np.int64)
            last = sizes - 2 * manifest["snippets"] * spec["dim"]
            # What lies outside would not be an error but the end of the process.
            if ((starts < 0) | (starts > last) | (starts % 2 != 0)).any():
                raise ValueError("it points outside of its shards")
    except Exception as error:  # of many kinds: NumPy parses Python in a file's header
        raise DataError(
            f"{path} is missing or damaged: {error}",
            remedy="Copy it again, or remove it with manifest.json to make both anew",
        ) from None
    return index
