"""Inspection of a shard set: its content, and every fault in it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from avvp_dist.commit import MANIFEST
from avvp_dist.config import ReadConfig
from avvp_dist.errors import DataError
from avvp_dist.shards.indexing import index_tars
from avvp_dist.shards.remote import is_url, list_url
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import OnBad

_CLIPS_AT_ONCE = 256


def inspect(
    place: str,
    *,
    deep: bool = False,
    skip_incomplete: bool = False,
    config: ReadConfig | None = None,
) -> None:
    """Print the content and the faults of a shard set, after a check of every shard's size.

    Tars that others wrote get their manifest and index first, on all cores.

    Args:
        deep: also check every SHA-256 and every number.
        skip_incomplete: index tars of others without the clips that lack arrays.

    Raises:
        DataError: with the number of faults, if there are any. Each fault is printed.
    """
    if not is_url(place) and not (Path(place) / MANIFEST).exists():
        index_tars(Path(place), os.cpu_count() or 1, skip_incomplete=skip_incomplete)
    faults: dict[str, None] = {}
    bad: set[int] = set()

    def note(clips: Iterable[int], error: DataError) -> None:
        bad.update(clips)
        faults.setdefault(str(error))

    shards = ShardSet(place, config, note)
    _print_content(shards)
    try:
        _ = shards.excluded
    except DataError as error:
        note((), error)
    listed = _compare_listing(shards, note) if shards.remote else True
    if deep:
        _read_everything(shards, note)
    for fault in faults:
        print(f"fault: {fault}")
    if faults:
        raise DataError(
            f"{shards.name} has {len(faults)} faults, {len(bad)} of {len(shards)} clips cannot be "
            "read"
        )
    if deep:
        print("no fault found")
    elif not listed:
        print(
            "manifest and index are right; what else lies there is not known, because HTTP has no "
            "listings; --deep fetches and reads every shard"
        )
    elif shards.remote:
        print("manifest, index and sizes are right; --deep fetches and reads every shard")
    else:
        print("sizes are right; --deep reads every byte")


def _print_content(shards: ShardSet) -> None:
    manifest = shards.manifest
    size = sum(shard.bytes for shard in shards.shards)
    print(f"{shards.name}, digest {shards.digest[:12]}")
    print(f"{len(shards)} clips in {len(shards.shards)} shards, {size / 2**30:.2f} GiB")
    print(f"extractor: {shards.extractor or 'not known'}")
    for name, stream in manifest.streams.items():
        low, high = stream.min, stream.max
        values = "nothing finite" if low is None else f"{low:.4g} to {high:.4g}"
        print(f"  {name}: [{shards.snippets}, {stream.dim}] {stream.dtype}, {values}")
    lengths = np.bincount(shards.lengths, minlength=shards.snippets + 1)
    short = int(lengths[1:-1].sum())
    print(f"{short} clips with fewer than {shards.snippets} snippets, {lengths[0]} not finite")
    left_out = manifest.source.get("left_out")
    for kind, count in left_out.items() if isinstance(left_out, dict) else ():
        if count:
            print(f"{count} {kind} clips were left out when it was packed")
    if entry := manifest.excluded:
        reasons = ", ".join(f"{reason} {count}" for reason, count in entry.reasons.items())
        against = ", ".join(one.name for one in entry.against) or "nothing else"
        print(f"{entry.clips} clips are excluded ({reasons}), compared with {against}")
    known = [names for names in shards.labels if names is not None]
    counts = Counter(name for names in known for name in names).most_common(10)
    shown = ", ".join(f"{name} {count}" for name, count in counts)
    print(f"{len(known)} clips with labels of {len(manifest.classes)} classes: {shown or 'none'}")


def _compare_listing(shards: ShardSet, note: OnBad) -> bool:
    """Compare the manifest with what lies beside it at its URL; returns whether that is listed."""
    sizes = list_url(shards.name)
    if sizes is None:
        return False
    for number, shard in enumerate(shards.shards):
        size = sizes.pop(shard.name, None)
        if size != shard.bytes:
            state = "is missing" if size is None else f"has {size} bytes, not {shard.bytes}"
            error = DataError(f"{shards.name}/{shard.name} {state}", remedy="Copy it again")
            note(shards.clips_of(number), error)
    for name in sorted(sizes):
        if name.endswith(".tar"):
            note(
                (),
                DataError(
                    f"{shards.name}/{name} is not in {MANIFEST} beside it: its clips are not read",
                    remedy="Copy manifest.json and index.npy anew too, or remove it",
                ),
            )
    return True


def _read_everything(shards: ShardSet, note: OnBad) -> None:
    for number in tqdm(range(len(shards.shards)), "reading", unit=" shards"):
        clips = np.array(shards.clips_of(number))
        for start in range(0, len(clips), _CLIPS_AT_ONCE):
            shards.read(clips[start : start + _CLIPS_AT_ONCE], note)
        shards.release([number])
