"""Packing: a feature folder into a shard set, one idempotent task per shard.

During the job `OUT/.pack` holds the ledger: for each finished shard the scan of its tar and the
clips left out. The manifest is written last, and then `OUT/.pack` is removed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from avvp_dist.commit import MANIFEST, digest, write_json
from avvp_dist.config import PackConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.ledger import Ledger
from avvp_dist.packing.audioset import AudioSetSource
from avvp_dist.packing.rates import check_rates
from avvp_dist.packing.sources import ArraySource, HanSource, Source, SourcePart
from avvp_dist.runtime.ray_tasks import map_tasks
from avvp_dist.shards.exclusion import EXCLUDED
from avvp_dist.shards.indexing import PLAN, write_manifest
from avvp_dist.shards.manifest import FORMAT
from avvp_dist.shards.remote import is_url
from avvp_dist.shards.schema import Clip, check_stream_names
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.tars import Scan, write_tar
from avvp_dist.tracking.run import stage_run

log = logging.getLogger(__name__)

SOURCES: dict[str, type[ArraySource] | type[HanSource] | type[AudioSetSource]] = {
    "arrays": ArraySource,
    "han": HanSource,
    "audioset": AudioSetSource,
}
"""Source formats by the name that `format=` gives them; made of folder, split, annotations."""
ORIGIN = "origin.json"
"""File beside the manifest that tells what a set was packed from. It is no part of the set."""
_FILES = "files"
"""Entry of it: the number of these files, and a hash of their sizes and times."""
_SHOWN = 5


@dataclass(frozen=True)
class LeftOut:
    """Clips that are not in the shard set, one line for each: its id and the reason."""

    broken: list[str] = field(default_factory=list)
    """Clips that cannot be read or do not fit the set."""
    short: list[str] = field(default_factory=list)
    """Clips of fewer than T snippets, left out by `short=drop`."""

    @classmethod
    def total(cls, parts: Sequence[LeftOut]) -> LeftOut:
        """All lines of several shards."""
        return cls(
            [line for part in parts for line in part.broken],
            [line for part in parts for line in part.short],
        )

    def counts(self) -> dict[str, int]:
        """Number of clips by reason."""
        return {"broken": len(self.broken), "short": len(self.short)}


@dataclass(frozen=True)
class PackedShard:
    """Ledger record of a finished shard."""

    scan: Scan | None
    """Contents of its tar; None if no clip was left to write."""
    left_out: LeftOut

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> PackedShard | None:
        """Record from its JSON form; None if it is damaged."""
        try:
            scan = record["scan"]
            return cls(None if scan is None else Scan(**scan), LeftOut(**record["left_out"]))
        except (KeyError, TypeError):
            return None


@dataclass(frozen=True)
class ShardTask:
    """Everything that the contents of one shard depend on."""

    part: SourcePart
    tar: Path
    snippets: int
    """T of the shard set."""
    dims: dict[str, int]
    dtype: str
    short: str
    """`pad` or `drop`: what happens to clips of fewer than T snippets."""

    def digest(self) -> str:
        """Hash of the plan for the shard, and of the sizes and times of the files it is made of."""
        stats = [_stat(file) for file in self.part.files()]
        made = [FORMAT, self.snippets, self.dims, self.dtype, self.short]
        return digest([*made, asdict(self.part), stats])


def pack(config: PackConfig) -> ShardSet:
    """Turn one split of a feature folder into a shard set; a finished set is left as it is.

    The same command again goes on with the shards that are missing or whose files have changed. A
    finished set is made anew if its files have changed since.

    Raises:
        ConfigError: for an `out` that is no local folder.
        DataError: for missing or broken features, an `out` that holds other clips, a full disk.
        ClusterError: if Ray does not start.
    """
    if is_url(config.out):
        raise ConfigError(f"out={config.out} is no local folder", remedy="Pack here, then copy it")
    out = Path(config.out)
    if ready := _finished(out, config):
        return ready
    out.mkdir(parents=True, exist_ok=True)
    try:
        # Without the lock the faster of two jobs would remove the ledger that the slower one needs.
        with FileLock(out / ".pack.lock", timeout=0):
            return _finished(out, config) or _pack(config, out)
    except Timeout:
        raise DataError(
            f"{out}: another process packs into it", remedy="Wait for it, or choose another out="
        ) from None


def pack_shard(task: ShardTask, made_from: str) -> LeftOut:
    """Write the tar of one shard and its ledger record; a task of its own process.

    Args:
        made_from: digest of the task.
    """
    clips: list[Clip] = []
    left_out = LeftOut()
    for item in task.part:
        try:
            if isinstance(item, DataError):
                raise item
            clip = item.padded(task.snippets, task.dims, task.dtype)
        except DataError as error:
            left_out.broken.append(str(error))
            continue
        if task.short == "pad" or clip.length == task.snippets:
            clips.append(clip)
        else:
            left_out.short.append(f"clip {clip.id} has {clip.length} of {task.snippets} snippets")
    packed = PackedShard(write_tar(clips, task.tar) if clips else None, left_out)
    _ledger(task.tar.parent).finish(task.tar.stem, made_from, **asdict(packed))
    return left_out


def _pack(config: PackConfig, out: Path) -> ShardSet:
    origin = {**_origin(config), _FILES: _files(config)}
    check_rates(config.rates)
    source = SOURCES[config.format](
        Path(config.source), config.split, config.annotations, config.rates
    )
    if len(set(source.ids)) < len(source.ids):
        (twice, _), *_ = Counter(source.ids).most_common(1)
        raise DataError(f"clip {twice} occurs twice", remedy="Ids must be unique")
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
    # Before the first tar, so that a pack that was cut off is not taken for foreign tars.
    (out / PLAN).mkdir(exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    extractor = config.extractor or source.extractor
    with stage_run("pack", out, config, {"extractor": extractor}) as run:
        tasks = _shard_tasks(config, source, out)
        made_from = [
            task.digest()
            for task in tqdm(tasks, "looking at the files", unit=" shards", leave=False)
        ]
        left_out = _pack_shards(config, tasks, made_from, len(source.ids)).counts()
        scans = list(_scans(out, tasks, made_from))
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
    short = int((packed.lengths < packed.snippets).sum())
    padded = f"{short} shorter ones are padded, " if short else ""
    dropped = ", ".join(f"{count} {kind}" for kind, count in left_out.items() if count)
    print(
        f"{out}: {len(packed)} clips of {packed.snippets} snippets, {padded}{dims}"
        + (f"; left out: {dropped}" if dropped else "")
    )
    return packed


def _shard_tasks(config: PackConfig, source: Source, out: Path) -> list[ShardTask]:
    snippets = config.snippets or source.snippets
    starts = range(0, len(source.ids), config.clips_per_shard)
    parts = [source.part(start, start + config.clips_per_shard) for start in starts]
    sizes = (snippets, _dims(parts), config.dtype, config.short)
    return [
        ShardTask(part, (out / f"shard-{number:06d}.tar").absolute(), *sizes)
        for number, part in enumerate(parts)
    ]


def _pack_shards(
    config: PackConfig, tasks: list[ShardTask], made_from: list[str], clips: int
) -> LeftOut:
    """Write the shards that are missing; returns what is left out of all shards.

    Args:
        made_from: digest of each task.
        clips: number of clips of the source.
    """
    calls = []
    done: list[LeftOut] = []
    for task, key in zip(tasks, made_from, strict=True):
        packed = _packed(task.tar, key)
        if packed is None:
            calls.append((task, key))
        else:
            done.append(packed.left_out)
    _remove_leftovers(Path(config.out), {task.tar.stem for task in tasks})
    with tqdm(total=len(calls), desc=f"packing {config.split}", unit=" shards") as bar:
        for left_out in map_tasks(pack_shard, calls, config.workers, "a packing task"):
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


def _check_broken(left_out: LeftOut, clips: int, config: PackConfig) -> None:
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


def _stat(file: Path) -> list[int]:
    """Size and time of a file; empty if there is none."""
    try:
        stat = file.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]


def _ledger(out: Path) -> Ledger:
    return Ledger(out / PLAN)


def _packed(tar: Path, made_from: str) -> PackedShard | None:
    """Record of a shard that is finished; None if it has to be written."""
    packed = PackedShard.parse(_ledger(tar.parent).finished(tar.stem, made_from) or {})
    if packed is None or packed.scan is None:
        return packed
    try:
        return packed if tar.stat().st_size == packed.scan.bytes else None
    except OSError:
        return None


def _scans(out: Path, tasks: list[ShardTask], made_from: list[str]) -> Iterator[Scan]:
    """Scans of the shards that hold clips.

    Raises:
        DataError: if a record was lost during the job.
    """
    for task, key in zip(tasks, made_from, strict=True):
        packed = _packed(task.tar, key)
        if packed is None:
            raise DataError(
                f"{out}: {task.tar.name} was changed during the job",
                remedy="Run the same command again: it goes on with what is missing",
            )
        if packed.scan is not None:
            yield packed.scan


def _origin(config: PackConfig) -> dict[str, object]:
    return {
        "folder": str(Path(config.source).absolute()),
        "format": config.format,
        "split": config.split,
        "annotations": config.annotations,
        "short": config.short,
        "snippets": config.snippets,
        "extractor": config.extractor,
        **({"rates": config.rates} if config.rates else {}),
        **({"dtype": config.dtype} if config.dtype != "float16" else {}),
    }


def _files(config: PackConfig) -> tuple[int, str]:
    """Number of the source's files that are there, and a hash of their sizes and times."""
    source, folder = SOURCES[config.format], Path(config.source)
    try:
        files = source.files_of(folder, config.split, config.annotations)
    except DataError:  # the list of its clips is gone
        files = []
    stats = {str(file.absolute()): _stat(file) for file in files}
    return sum(map(bool, stats.values())), digest(stats)


def _state_of_files(before: object, now: tuple[int, str]) -> str:
    """Change of the source's files since a set was packed; empty if there was none."""
    match before:
        case [int(count), str(content)]:
            if (count, content) == now:
                return ""
            return "gone" if now[0] < count else "changed"
    return "unknown"


def _finished(out: Path, config: PackConfig) -> ShardSet | None:
    """Open a shard set that is complete; None if there is none, or it is to be made anew.

    Raises:
        DataError: if it was packed from something else than `config` says.
    """
    if not (out / MANIFEST).exists():
        return None
    ready, asked = ShardSet(out), _origin(config)
    try:
        recorded = json.loads((out / ORIGIN).read_text())
    except (OSError, ValueError):
        recorded = {}
    files = _state_of_files(recorded.pop(_FILES, None), _files(config))
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
