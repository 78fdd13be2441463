"""The clips of a shard set that are not for training: `excluded.csv`, named by the manifest.

The manifest's entry `excluded` tells of the list and vouches for it. Nothing else of the set
changes: what is made of all clips, such as a grounding, stays right, and goes by
`content_digest`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import MANIFEST, sha256, staged, write_json
from avvp_dist.errors import DataError
from avvp_dist.shards.remote import is_url, read_url

ENTRY = "excluded"
EXCLUDED = "excluded.csv"
REASONS = ("id", "embedding", "duplicate")

_REMEDY = "Copy it again, or make it anew with tools/decontaminate.py"


class Exclusion(NamedTuple):
    """A clip that is left out, why, what it matches, and its cosine to that in each stream; NaN
    where none was taken."""

    clip: int
    id: str
    reason: str
    match: str
    similarity: tuple[float, ...]


def content_digest(manifest: dict[str, Any]) -> str:
    """Hex SHA-256 of a manifest as it is without its entry `excluded`."""
    rest = {key: value for key, value in manifest.items() if key != ENTRY}
    return hashlib.sha256((json.dumps(rest, indent=1) + "\n").encode()).hexdigest()


def check_entry(manifest: dict[str, Any], path: str) -> None:
    """Raise `DataError`, naming `path`, if a manifest's entry `excluded` is not one."""
    if ENTRY not in manifest:
        return
    try:
        entry = manifest[ENTRY]
        name, reasons = entry["name"], entry["reasons"]
        counts = [entry["bytes"], entry["clips"], *(reasons[key] for key in REASONS)]
        texts = [name, entry["sha256"]]
        texts += [text for one in entry["against"] for text in (one["name"], one["sha256"])]
        whole = (
            all(type(count) is int and count >= 0 for count in counts)
            and all(type(text) is str for text in texts)
            and type(entry["similarity"]) in (int, float)
            and "/" not in name
            and not name.startswith(".")
        )
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise DataError(
            f"{path} is damaged: its entry {ENTRY} misses something or is of another kind",
            remedy=_REMEDY,
        )


def read_excluded(place: str, manifest: dict[str, Any]) -> NDArray[np.bool_]:
    """Which clips of the shard set at `place`, a folder or URL, are excluded, `[N]`.

    Raises:
        DataError: naming the list, if it is missing or not the manifest's.
    """
    excluded = np.zeros(sum(shard["clips"] for shard in manifest["shards"]), bool)
    if ENTRY not in manifest:
        return excluded
    entry = manifest[ENTRY]
    path = f"{place}/{entry['name']}"
    try:
        data = read_url(path) if is_url(path) else Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing", remedy=_REMEDY) from None
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DataError(f"{path} has another SHA-256 than the manifest says", remedy=_REMEDY)
    try:
        _, *rows = csv.reader(io.StringIO(data.decode(), newline=""))
        excluded[[int(row[0]) for row in rows]] = True
    except (ValueError, IndexError):
        raise DataError(f"{path} is no list of this set's clips", remedy=_REMEDY) from None
    return excluded


def write_excluded(
    folder: Path,
    manifest: dict[str, Any],
    exclusions: Iterable[Exclusion],
    streams: Sequence[str],
    **how: Any,
) -> Path:
    """Write the list of a shard set and name it in its manifest; returns the list's path.

    The same exclusions give the same bytes. Where a list is replaced, the manifest first forgets
    the old one: cut off at any point, the set can be read.

    Args:
        exclusions: in the order of their clips.
        streams: whose similarities the exclusions have.
        how: what else the manifest's entry says.
    """
    path = folder / EXCLUDED
    rest = {key: value for key, value in manifest.items() if key != ENTRY}
    reasons = dict.fromkeys(REASONS, 0)
    with staged(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["clip", "id", "reason", "match", *streams])
            for exclusion in exclusions:
                *columns, near = exclusion
                writer.writerow([*columns, *("" if np.isnan(x) else f"{x:.4f}" for x in near)])
                reasons[exclusion.reason] += 1
        entry = {
            "name": EXCLUDED,
            "bytes": temporary.stat().st_size,
            "sha256": sha256(temporary),
            "clips": sum(reasons.values()),
            "reasons": reasons,
            **how,
        }
        if manifest.get(ENTRY, entry) != entry:
            write_json(folder / MANIFEST, rest)
    write_json(folder / MANIFEST, {**rest, ENTRY: entry})
    return path
