"""One shard of a set as a task of its own process, and its record in the ledger."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from avvp_dist.commit import digest
from avvp_dist.errors import DataError
from avvp_dist.ledger import Ledger
from avvp_dist.packing.sources import SourceFile, SourcePart
from avvp_dist.shards.indexing import PLAN
from avvp_dist.shards.manifest import FORMAT
from avvp_dist.shards.remote import RemoteFile
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.tars import Scan, write_tar


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
    write_seconds: float = 0.0
    """Wall time that the writing of its tar took."""

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> PackedShard | None:
        """Record from its JSON form; None if it is damaged."""
        try:
            scan = record["scan"]
            left_out = LeftOut(**record["left_out"])
            return cls(None if scan is None else Scan(**scan), left_out, record["write_seconds"])
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
        stats = [stat_of(file) for file in self.part.files()]
        made = [FORMAT, self.snippets, self.dims, self.dtype, self.short]
        return digest([*made, asdict(self.part), stats])


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
    started = time.monotonic()
    scan = write_tar(clips, task.tar) if clips else None
    packed = PackedShard(scan, left_out, round(time.monotonic() - started, 4))
    shard_ledger(task.tar.parent).finish(task.tar.stem, made_from, **asdict(packed))
    return left_out


def finished_shard(tar: Path, made_from: str) -> PackedShard | None:
    """Record of a shard that is finished; None if it has to be written."""
    packed = PackedShard.parse(shard_ledger(tar.parent).finished(tar.stem, made_from) or {})
    if packed is None or packed.scan is None:
        return packed
    try:
        return packed if tar.stat().st_size == packed.scan.bytes else None
    except OSError:
        return None


def shard_ledger(out: Path) -> Ledger:
    """Records of the finished shards of a set that is being written."""
    return Ledger(out / PLAN)


def stat_of(file: SourceFile) -> list[int | str]:
    """Size and time of a file, or its version at a URL; empty if it is not there or not known."""
    if isinstance(file, RemoteFile):
        return [file.bytes or 0, file.version] if file.version else []
    try:
        stat = file.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]
