"""The embeddings of a shard set's clips on disk, for as long as clips are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import staged
from avvp_dist.config import ReadConfig
from avvp_dist.shards.indexing import owners_of
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import ignore_bad
from avvp_dist.shards.worker import open_once
from avvp_dist.similarity import duplicates
from avvp_dist.similarity.duplicates import Rows

BLOCK = 16384
"""Clips that are compared with as many others at once."""

_CLIPS_AT_ONCE = 256


@dataclass(frozen=True)
class Embedded:
    """The embeddings of a shard set's clips: one `.npy` a shard, in `folder`.

    `starts` are the first clips of the shards and the end of the last, `dims` those of the streams,
    side by side in the files.
    """

    folder: str
    starts: list[int]
    dims: dict[str, int]

    @classmethod
    def of(cls, shards: ShardSet, folder: Path) -> Embedded:
        """Where those of `shards` will be."""
        folder.mkdir()
        return cls(str(folder), shards.starts.tolist(), shards.dims)

    def file(self, shard: int) -> Path:
        return Path(self.folder) / f"{shard:06d}.npy"

    def blocks(self) -> list[range]:
        """The clips, `BLOCK` at a time."""
        end = self.starts[-1]
        return [range(start, min(start + BLOCK, end)) for start in range(0, end, BLOCK)]

    def read(self, clips: Rows, streams: Sequence[str]) -> NDArray[np.float32]:
        """Some streams of `clips [B]`, as `duplicates.concatenated`: `[B, sum of dims]`."""
        made = np.empty((len(clips), sum(self.dims.values())), np.float16)
        owners = owners_of(clips, self.starts)
        for shard in np.unique(owners).tolist():
            mine = owners == shard
            rows = np.load(self.file(shard), mmap_mode="r")
            made[mine] = rows[clips[mine] - self.starts[shard]]
        ends = dict(zip(self.dims, np.cumsum(list(self.dims.values())).tolist(), strict=True))
        parts = [made[:, ends[name] - self.dims[name] : ends[name]] for name in streams]
        return duplicates.concatenated(np.concatenate(parts, 1), [part.shape[1] for part in parts])


def embed_shard(
    embedded: Embedded, place: str, digest: str, reading: ReadConfig, number: int
) -> tuple[int, int]:
    """Write the embeddings of one shard's clips; returns their number, and that of those which
    cannot be read: they have 0."""
    shards = open_once(place, digest, reading)
    unreadable, parts = 0, []
    clips = np.array(shards.clips_of(number))
    for start in range(0, len(clips), _CLIPS_AT_ONCE):
        some = clips[start : start + _CLIPS_AT_ONCE]
        streams, good = shards.read(some, ignore_bad)
        parts.append(duplicates.embeddings(streams, shards.lengths[some]))
        unreadable += int((~good).sum())
    shards.release([number])
    with staged(embedded.file(number)) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(parts), allow_pickle=False)
    return len(clips), unreadable
