"""Any source of clips made into a shard set: one idempotent task per shard, then the manifest.

During the job `OUT/.pack` holds the ledger: for each finished shard the scan of its tar and the
clips left out. The manifest is written last, and then `OUT/.pack` is removed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout
from tqdm import tqdm

from avvp_dist.commit import MANIFEST, digest, write_json
from avvp_dist.errors import ConfigError, DataError, StorageError
from avvp_dist.packing.shard_tasks import (
    LeftOut,
    PackedShard,
    ShardTask,
    finished_shard,
    pack_shard,
    stat_of,
)
from avvp_dist.packing.sources import Source, SourceFile, SourcePart
from avvp_dist.runtime.cluster.tasks import map_tasks
from avvp_dist.shards.exclusion import EXCLUDED
from avvp_dist.shards.indexing import PLAN, write_manifest
from avvp_dist.shards.remote import RemoteFile, is_url
from avvp_dist.shards.schema import check_stream_names
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tracking.run import TrackedConfig, stage_run

log = logging.getLogger(__name__)

ORIGIN = "origin.json"
"""File beside the manifest that tells what a set was made from. It is no part of the set."""
_FILES = "files"
"""Entry of it: the number of these files, and a hash of their sizes and times."""
_SHOWN = 5


class SetConfig(TrackedConfig, Protocol):
    """Keys that every stage has which makes a shard set."""

    out: str
    dtype: str
    short: str
    clips_per_shard: int
    extractor: str
    max_bad_fraction: float
    workers: int

    @property
    def snippets(self) -> int: ...


@dataclass(frozen=True)
class Recipe:
    """Source of a shard set, and how its clips are named in messages."""

    stage: str
    """Name of the stage: `pack` or `extract`."""
    what: str
    """Its clips, for the progress bar."""
    origin: Mapping[str, object]
    """Keys that clips depend on: a finished set of other ones is refused."""
    files: Callable[[], Sequence[SourceFile]]
    """Lists the files that clips are read from, without a look into them."""
    source: Callable[[], Source]
    """Opens the source."""
    kept: Mapping[str, object]
    """Entries of the manifest about the source."""
    watched: Callable[[int], AbstractContextManager[None]] | None = None
    """Shows the progress of the given number of clips; None: a bar of shards."""
    cpus: int = 1
    """CPUs of each task."""
    gpus: float = 0.0
    """GPUs of each task, if the cluster has any."""
    finish: Callable[[Path, Sequence[PackedShard]], None] = lambda out, shards: None
    """Is called with the set's folder and all shards before the ledger is removed."""


def make_set(config: SetConfig, recipe: Recipe) -> ShardSet:
    """Make a shard set; a finished set is left as it is.

    The same command again goes on with the shards that are missing or whose files have changed. A
    finished set is made anew if its files have changed since, and kept if some are gone.

    Raises:
        ConfigError: for an `out` that is no local folder.
        DataError: for missing or broken clips, an `out` that holds other clips, a full disk.
        ClusterError: if Ray does not start.
    """
    if is_url(config.out):
        raise ConfigError(f"out={config.out} is no local folder", remedy="Pack here, then copy it")
    out = Path(config.out)
    if ready := _finished(out, recipe):
        return ready
    out.mkdir(parents=True, exist_ok=True)
    try:
        # Without the lock the faster of two jobs would remove the ledger that the slower one needs.
        with FileLock(out / ".pack.lock", timeout=0):
            return _finished(out, recipe) or _make(config, recipe, out)
    except Timeout:
        raise DataError(
            f"{out}: another process packs into it", remedy="Wait for it, or choose another out="
        ) from None


def _make(config: SetConfig, recipe: Recipe, out: Path) -> ShardSet:
    origin = {**recipe.origin, _FILES: _files(recipe)}
    source = recipe.source()
    if len(set(source.ids)) < len(source.ids):
        (twice, _), *_ = Counter(source.ids).most_common(1)
        raise DataError(f"clip {twice} occurs twice", remedy="Ids must be unique")
    _prepare(out)
    extractor = config.extractor or source.extractor
    with stage_run(recipe.stage, out, config, {"extractor": extractor}) as run:
        tasks = _shard_tasks(config, source, out)
        made_from = [
            task.digest()
            for task in tqdm(tasks, "looking at the files", unit=" shards", leave=False)
        ]
        left_out = _write_shards(config, recipe, tasks, made_from, len(source.ids)).counts()
        shards = list(_packed(out, tasks, made_from))
        scans = [shard.scan for shard in shards if shard.scan is not None]
        if not scans:
            raise DataError(f"no clips to write into {out}")
        write_json(out / ORIGIN, origin)
        kept = {**recipe.kept, "left_out": left_out}
        write_manifest(out, scans, extractor=extractor, source=kept)
        recipe.finish(out, shards)
        shutil.rmtree(out / PLAN)
        made = ShardSet(out)
        run.log(0, clips=len(made), shards=len(made.shards), **left_out)
        run.artifact(out / MANIFEST)
    _describe(out, made, left_out)
    return made


def _prepare(out: Path) -> None:
    """Make the folder ready for tars, and say what becomes of a set that is in it.

    Raises:
        DataError: if it holds tars of others.
    """
    if remade := (out / MANIFEST).exists():
        print(f"{out}: its files have changed since it was packed: it is packed again")
        if (excluded := out / EXCLUDED).exists():
            excluded.unlink()
            print(f"{out}: {EXCLUDED} was of the clips before: run avvp decontaminate again")
    if not remade and not (out / PLAN).exists() and any(out.glob("shard-*.tar")):
        raise DataError(
            f"{out} holds tars that no unfinished pack has left: they would be overwritten",
            remedy="Choose another out= or remove them",
        )
    # Before the first tar, so that a set that was cut off is not taken for foreign tars.
    (out / PLAN).mkdir(exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)


def _describe(out: Path, made: ShardSet, left_out: Mapping[str, int]) -> None:
    dims = ", ".join(f"{name} {dim}" for name, dim in made.dims.items())
    short = int((made.lengths < made.snippets).sum())
    padded = f"{short} shorter ones are padded, " if short else ""
    dropped = ", ".join(f"{count} {kind}" for kind, count in left_out.items() if count)
    print(
        f"{out}: {len(made)} clips of {made.snippets} snippets, {padded}{dims}"
        + (f"; left out: {dropped}" if dropped else "")
    )


def _shard_tasks(config: SetConfig, source: Source, out: Path) -> list[ShardTask]:
    snippets = config.snippets or source.snippets
    starts = range(0, len(source.ids), config.clips_per_shard)
    parts = [source.part(start, start + config.clips_per_shard) for start in starts]
    sizes = (snippets, source.dims or _dims(parts), config.dtype, config.short)
    return [
        ShardTask(part, (out / f"shard-{number:06d}.tar").absolute(), *sizes)
        for number, part in enumerate(parts)
    ]


def _write_shards(
    config: SetConfig,
    recipe: Recipe,
    tasks: list[ShardTask],
    made_from: list[str],
    clips: int,
) -> LeftOut:
    """Write the shards that are missing; returns what is left out of all shards.

    Args:
        made_from: digest of each task.
        clips: number of clips of the source.
    """
    calls = []
    done: list[LeftOut] = []
    for task, key in zip(tasks, made_from, strict=True):
        packed = finished_shard(task.tar, key)
        if packed is None:
            calls.append((task, key))
        else:
            done.append(packed.left_out)
    _remove_leftovers(Path(config.out), {task.tar.stem for task in tasks})
    name = f"a {recipe.stage} task"
    bar = tqdm(total=len(calls), desc=recipe.what, unit=" shards", disable=bool(recipe.watched))
    with bar, recipe.watched(clips) if recipe.watched else nullcontext():
        for left_out in map_tasks(
            pack_shard, calls, config.workers, name, cpus=recipe.cpus, gpus=recipe.gpus
        ):
            done.append(left_out)
            bar.update()
            _check_broken(LeftOut.total(done), clips, config)
    total = LeftOut.total(done)
    _check_broken(total, clips, config)
    for lines in (total.broken, total.short):
        if lines:
            log.warning("%d of %d clips left out: %s", len(lines), clips, _first(lines))
    return total


def _remove_leftovers(out: Path, shards: set[str]) -> None:
    """Remove what earlier attempts have left and this one does not write again."""
    for path in [*out.glob("shard-*.tar"), *(out / PLAN).glob("shard-*.json")]:
        if path.stem not in shards:
            path.unlink()  # from an attempt with more shards
    for path in out.glob(".shard-*.tmp"):
        path.unlink(missing_ok=True)  # from an attempt that was killed


def _check_broken(left_out: LeftOut, clips: int, config: SetConfig) -> None:
    broken = left_out.broken
    if len(broken) > config.max_bad_fraction * clips + 1e-6:
        raise DataError(
            f"{len(broken)} of {clips} clips are broken: {_first(broken)}",
            remedy="Put them right, or raise max_bad_fraction to leave them out",
        )


def _first(lines: list[str]) -> str:
    return "; ".join(lines[:_SHOWN]) + ("; ..." if len(lines) > _SHOWN else "")


def _dims(parts: list[SourcePart]) -> dict[str, int]:
    """Streams of the first clip that can be read, and their dims."""
    errors: list[DataError] = []
    for part in parts:
        for item in part:
            if isinstance(item, DataError):
                errors.append(item)
                continue
            check_stream_names(item.streams)
            return {name: int(array.shape[-1]) for name, array in sorted(item.streams.items())}
    raise errors[0] if errors else DataError("the source has no clips")


def _packed(out: Path, tasks: list[ShardTask], made_from: list[str]) -> Iterator[PackedShard]:
    """Records of all shards, in order.

    Raises:
        DataError: if one was lost during the job.
    """
    for task, key in zip(tasks, made_from, strict=True):
        packed = finished_shard(task.tar, key)
        if packed is None:
            raise DataError(
                f"{out}: {task.tar.name} was changed during the job",
                remedy="Run the same command again: it goes on with what is missing",
            )
        yield packed


def _files(recipe: Recipe) -> tuple[int, str]:
    """Number of the source's files that are there, and a hash of their sizes and times.

    The hash is empty if a server does not tell whether its files have changed.
    """
    try:
        files = recipe.files()
    except StorageError:  # a server cannot be reached now
        return 0, ""
    except DataError:  # the list of its clips is gone
        files = []
    if any(isinstance(file, RemoteFile) and not file.version for file in files):
        return len(files), ""
    stats = {
        str(file.absolute() if isinstance(file, Path) else file): stat_of(file) for file in files
    }
    return sum(map(bool, stats.values())), digest(stats)


def _state_of_files(before: object, now: tuple[int, str]) -> str:
    """Change of the source's files since a set was packed; empty if there was none."""
    match before:
        case [int(count), str(content)] if content and now[1]:
            if (count, content) == now:
                return ""
            return "gone" if now[0] < count else "changed"
    return "unknown"


def _finished(out: Path, recipe: Recipe) -> ShardSet | None:
    """Open a shard set that is complete; None if there is none, or it is to be made anew.

    Raises:
        DataError: if it was packed from something else than `recipe` says.
    """
    if not (out / MANIFEST).exists():
        return None
    ready, asked = ShardSet(out), dict(recipe.origin)
    try:
        recorded = json.loads((out / ORIGIN).read_text())
    except (OSError, ValueError):
        recorded = {}
    files = _state_of_files(recorded.pop(_FILES, None), _files(recipe))
    if recorded != asked:
        raise DataError(
            f"{out} already holds clips of {recorded or 'another source'}, not of {asked}",
            remedy="Choose another out= or remove it",
        )
    if files == "changed":
        return None
    note = {
        "": "",
        "unknown": "; whether its files have changed since is not known",
        "gone": "; some of its files are gone since, so that it is left as it is (to pack without "
        "them, remove it first)",
    }[files]
    print(f"{out}: already packed, {len(ready)} clips{note}")
    return ready
