"""The list of a shard set's clips that are not for training: `excluded.csv`.

The manifest's entry `excluded` names the list and its SHA-256. Nothing else of the set changes.
Whatever is made of all clips, such as a grounding, stays valid, because it goes by the manifest's
`content_digest`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import check_sha256, sha256, staged
from avvp_dist.errors import DataError
from avvp_dist.shards.manifest import REASONS, ComparedList, ExcludedEntry, Manifest
from avvp_dist.shards.remote import is_url, read_url

EXCLUDED = "excluded.csv"

_REMEDY = "Copy it again, or make it anew with avvp decontaminate"


@dataclass(frozen=True)
class Exclusion:
    """A clip that is left out, by number and id.

    `reason` is one of `REASONS`, `match` the clip or list entry that it matches. `similarity` is
    the cosine to that match in each stream, NaN where none was computed.
    """

    clip: int
    id: str
    reason: str
    match: str
    similarity: tuple[float, ...]


def read_excluded(place: str, manifest: Manifest) -> NDArray[np.bool_]:
    """Mask of the excluded clips of the shard set at `place`, a folder or URL, `[N]`.

    Raises:
        DataError: naming the list, if it is missing or not the manifest's.
    """
    excluded = np.zeros(sum(shard.clips for shard in manifest.shards), bool)
    if manifest.excluded is None:
        return excluded
    path = f"{place}/{manifest.excluded.name}"
    try:
        content = read_url(path) if is_url(path) else Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing", remedy=_REMEDY) from None
    check_sha256(path, sha256(content), manifest.excluded.sha256, _REMEDY)
    try:
        _, *rows = csv.reader(io.StringIO(content.decode(), newline=""))
        excluded[[int(row[0]) for row in rows]] = True
    except (ValueError, IndexError):
        raise DataError(f"{path} is no list of this set's clips", remedy=_REMEDY) from None
    return excluded


def write_excluded(
    folder: Path,
    manifest: Manifest,
    exclusions: Iterable[Exclusion],
    streams: Sequence[str],
    *,
    against: Sequence[ComparedList],
    similarity: float,
) -> Path:
    """Write the list of a shard set and name it in the set's manifest; returns the list's path.

    Equal exclusions give equal bytes. Before a list is replaced by another, the manifest drops the
    old one, so that the set can be read however early the process is cut off.

    Args:
        exclusions: in the order of their clips.
        streams: names of the streams whose similarities the exclusions hold.
        against: the lists and shard sets that were compared with.
        similarity: cosine from which two clips counted as one.
    """
    path = folder / EXCLUDED
    reasons = dict.fromkeys(REASONS, 0)
    with staged(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["clip", "id", "reason", "match", *streams])
            for one in exclusions:
                cosines = ("" if np.isnan(cosine) else f"{cosine:.4f}" for cosine in one.similarity)
                writer.writerow([one.clip, one.id, one.reason, one.match, *cosines])
                reasons[one.reason] += 1
        entry = ExcludedEntry(
            name=EXCLUDED,
            bytes=temporary.stat().st_size,
            sha256=sha256(temporary),
            clips=sum(reasons.values()),
            reasons=reasons,
            against=tuple(against),
            similarity=similarity,
        )
        if manifest.excluded not in (None, entry):
            replace(manifest, excluded=None).save(folder)
    replace(manifest, excluded=entry).save(folder)
    return path
