"""Packing: a feature folder into a shard set, one idempotent task per shard.

While it lasts, `OUT/.pack` holds the plan and, for each finished shard, what is in it; the
manifest comes last, and then the folder goes.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from avvp_dist.commit import MANIFEST, digest, write_json
from avvp_dist.config import PackConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.packing.audioset import AudioSetSource
from avvp_dist.packing.sources import ArraySource, HanSource, Source, SourcePart
from avvp_dist.runtime.ray_tasks import map_tasks
from avvp_dist.shards.indexing import PLAN, write_manifest
from avvp_dist.shards.manifest import FORMAT
from avvp_dist.shards.remote import is_url
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.tars import Scan, write_tar
from avvp_dist.tracking.run import stage_run

log = logging.getLogger(__name__)

SOURCES: dict[str, Any] = {"arrays": ArraySource, "han": HanSource, "audioset": AudioSetSource}
LeftOut = dict[str, list[str]]
"""Under `broken` and `short`: what was left out of a shard, a line each."""
ORIGIN = "origin.json"
"""Beside the manifest: which folder a set was packed from. It is no part of the set."""


def pack(config: PackConfig) -> ShardSet:
    """Turn one split of a feature folder into a shard set; a finished one is left as it is.

    The same command again goes on with the shards that are missing or whose files have changed.

    Raises:
        DataError: for missing or broken features, an `out` that holds other clips, a full disk.
        ClusterError: if Ray does not start.
    """
    if is_url(config.out):
        raise ConfigError(f"out={config.out} is no local folder", remedy="Pack here, then copy it")
    out = Path(config.out)
    if (out / MANIFEST).exists():
        return _finished(out, _origin(config))
    out.mkdir(parents=True, exist_ok=True)
    try:
        # Of two at once, the faster takes away the ledger that the slower makes its manifest of.
        with FileLock(out / ".pack.lock", timeout=0):
            return _pack(config, out)
    except Timeout:
        raise DataError(
            f"{out}: another process packs into it", remedy="Wait for it, or choose another out="
        ) from None


def _pack(config: PackConfig, out: Path) -> ShardSet:
    origin = _origin(config)
    if (out / MANIFEST).exists():  # another process was faster
        return _finished(out, origin)
    source: Source = SOURCES[config.format](Path(config.source), config.split, config.annotations)
    if len(set(source.ids)) < len(source.ids):
        (twice, _), *_ = Counter(source.ids).most_common(1)
        raise DataError(f"clip {twice} occurs twice", remedy="Ids must be unique")
    if not (out / PLAN).exists() and any(out.glob("shard-*.tar")):
        raise DataError(
            f"{out} holds tars that no unfinished pack has left: they would be overwritten",
            remedy="Choose another out= or remove them",
        )
    (out / PLAN).mkdir(exist_ok=True)  # before the first tar: cut off, it must not be adopted
    extractor = config.extractor or source.extractor
    with stage_run("pack", out, config, {"extractor": extractor}) as run:
        left_out = _pack_shards(config, source, out)
        shards = -(-len(source.ids) // config.clips_per_shard)
        scans = [scan for scan in _scans(out, shards) if scan.ids]
        if not scans:
            raise DataError(f"no clips to write into {out}")
        write_json(out / ORIGIN, origin)
        kept = {"format": config.format, "split": config.split, "left_out": left_out}
        write_manifest(out, scans, extractor=extractor, source=kept)
        shutil.rmtree(out / PLAN)
        packed = ShardSet(out)
        run.log(0, clips=len(packed), shards=len(packed.shards), **left_out)
        run.artifact(out / MANIFEST)
    dims = ", ".join(f"{name} {dim}" for name, dim in packed.dims.items())
    print(f"{out}: {len(packed)} clips of {packed.snippets} snippets, {dims}")
    return packed


def pack_shard(
    part: SourcePart, tar: Path, snippets: int, dims: dict[str, int], short: str, made_from: str
) -> LeftOut:
    """Write one shard and, beside the plan, what is in it; what was left out of it."""
    clips: list[Clip] = []
    left_out: LeftOut = {"broken": [], "short": []}
    for item in part:
        try:
            if isinstance(item, DataError):
                raise item
            clip = item.padded(snippets, dims)
        except DataError as error:
            left_out["broken"].append(str(error))
            continue
        if short == "pad" or clip.length == snippets:
            clips.append(clip)
        else:
            left_out["short"].append(f"clip {clip.id} has {clip.length} of {snippets} snippets")
    scan = asdict(write_tar(clips, tar)) if clips else None
    write_json(_ledger(tar), {"made_from": made_from, "scan": scan, "left_out": left_out})
    return left_out


def _pack_shards(config: PackConfig, source: Source, out: Path) -> dict[str, int]:
    """Write the shards that are missing; how many clips were left out, and why."""
    snippets = config.snippets or source.snippets
    starts = range(0, len(source.ids), config.clips_per_shard)
    parts = [source.part(start, start + config.clips_per_shard) for start in starts]
    dims = _dims(parts)
    calls = []
    found: list[LeftOut] = []
    for number, part in enumerate(tqdm(parts, "looking at the files", unit=" shards", leave=False)):
        tar = out / f"shard-{number:06d}.tar"
        stats = [_stat(file) for file in part.files()]
        plan = [FORMAT, snippets, dims, config.short, asdict(part), stats]
        made_from = digest(plan)
        done = _done(tar, made_from)
        if done is None:
            calls.append((part, tar.absolute(), snippets, dims, config.short, made_from))
        else:
            found.append(done)
    wanted = {f"shard-{number:06d}" for number in range(len(parts))}
    for path in [*out.glob("shard-*.tar"), *(out / PLAN).glob("shard-*.json")]:
        if path.stem not in wanted:
            path.unlink()  # of an attempt with more shards
    for path in out.glob(".shard-*.tmp"):
        path.unlink(missing_ok=True)  # of an attempt that was killed
    with tqdm(total=len(calls), desc=f"packing {config.split}", unit=" shards") as bar:
        for left_out in map_tasks(pack_shard, calls, config.workers, "a packing task"):
            found.append(left_out)
            bar.update()
            _check_broken(found, len(source.ids), config)
    _check_broken(found, len(source.ids), config)
    for kind in ("broken", "short"):
        if lines := [line for left_out in found for line in left_out[kind]]:
            share = f"{len(lines)} of {len(source.ids)} clips"
            log.warning("%s left out: %s", share, _named(lines))
    return {kind: sum(len(left_out[kind]) for left_out in found) for kind in ("broken", "short")}


def _check_broken(found: list[LeftOut], clips: int, config: PackConfig) -> None:
    broken = [line for left_out in found for line in left_out["broken"]]
    if len(broken) > config.max_bad_fraction * clips + 1e-6:
        raise DataError(
            f"{len(broken)} of {clips} clips are broken: {_named(broken)}",
            remedy="Put them right, or raise max_bad_fraction to leave them out",
        )


def _named(broken: list[str]) -> str:
    return "; ".join(broken[:5]) + ("; ..." if len(broken) > 5 else "")


def _dims(parts: list[SourcePart]) -> dict[str, int]:
    """The streams of the first clip that can be read, and their dims."""
    errors: list[DataError] = []
    for part in parts:
        for item in part:
            if isinstance(item, DataError):
                errors.append(item)
                continue
            return {name: int(array.shape[-1]) for name, array in sorted(item.streams.items())}
    raise errors[0] if errors else DataError("the source has no clips")


def _stat(file: Path) -> list[int]:
    try:
        found = file.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _ledger(tar: Path) -> Path:
    return tar.parent / PLAN / f"{tar.stem}.json"


def _done(tar: Path, made_from: str) -> LeftOut | None:
    """What was left out of a shard that is finished; None if it is not."""
    try:
        meta = json.loads(_ledger(tar).read_text())
        if meta["made_from"] != made_from:
            return None
        if meta["scan"] is not None and tar.stat().st_size != meta["scan"]["bytes"]:
            return None
        left_out: LeftOut = meta["left_out"]
        return left_out
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _scans(out: Path, shards: int) -> Iterator[Scan]:
    for number in range(shards):
        meta = json.loads(_ledger(out / f"shard-{number:06d}.tar").read_text())
        if meta["scan"] is not None:
            yield Scan(**meta["scan"])


def _origin(config: PackConfig) -> dict[str, Any]:
    return {
        "folder": str(Path(config.source).absolute()),
        "format": config.format,
        "split": config.split,
        "annotations": config.annotations,
        "short": config.short,
        "snippets": config.snippets,
        "extractor": config.extractor,
    }


def _finished(out: Path, origin: dict[str, Any]) -> ShardSet:
    ready = ShardSet(out)
    try:
        found = json.loads((out / ORIGIN).read_text())
    except (OSError, ValueError):
        found = None
    if found != origin:
        raise DataError(
            f"{out} already holds clips of {found or 'another source'}, not of {origin}",
            remedy="Choose another out= or remove it",
        )
    print(f"{out}: already packed, {len(ready)} clips")
    return ready
