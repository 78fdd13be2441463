"""Clip embeddings: one direction per clip and stream, in memory and on disk.

The embedding of a clip in a stream is the mean direction of its real snippets. For a search over
all streams at once, the unit vectors of the streams are placed side by side and divided by the
square root of their number: the inner product of two such vectors is the mean cosine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import staged
from avvp_dist.config import ReadConfig
from avvp_dist.shards.indexing import owners_of
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import ignore_bad
from avvp_dist.shards.worker import open_once
from avvp_dist.similarity.search import unit

BLOCK = 16384
"""Clips in one side of a comparison: two blocks of joint vectors fit the memory of a worker."""

_CLIPS_PER_SUM = 1024
_CLIPS_PER_READ = 256


def embed(
    streams: Mapping[str, NDArray[np.floating]], lengths: NDArray[np.integer]
) -> NDArray[np.float16]:
    """Embeddings of clips, the streams side by side.

    Args:
        streams: `[N, T, D]` by name.
        lengths: number of real snippets of each clip, `[N]`; the snippets after them are padding.

    Returns:
        float16 `[N, sum of D]`. A stream of zeros has the embedding 0.
    """
    embeddings = np.zeros((len(lengths), sum(x.shape[-1] for x in streams.values())), np.float16)
    for start in range(0, len(lengths), _CLIPS_PER_SUM):
        part, column = slice(start, start + _CLIPS_PER_SUM), 0
        for array in streams.values():
            x = unit(array[part])
            x[np.arange(x.shape[1]) >= lengths[part, None]] = 0
            embeddings[part, column : column + x.shape[-1]] = unit(x.sum(1))
            column += x.shape[-1]
    return embeddings


def joint_vectors(embeddings: NDArray[np.float16], dims: Sequence[int]) -> NDArray[np.float32]:
    """Joint vectors of embeddings `[N, sum of dims]`, whose inner product is the mean cosine.

    Returns:
        float32 `[N, sum of dims]` of norm 1, or less where the embedding of a stream is 0.
    """
    parts = np.split(embeddings, np.cumsum(dims)[:-1], axis=1)
    vectors = np.concatenate([unit(part) for part in parts], 1)
    return vectors / np.sqrt(len(dims), dtype=np.float32)


def stream_cosines(
    first: NDArray[np.float32], second: NDArray[np.float32], dims: Sequence[int]
) -> NDArray[np.float32]:
    """Cosine in each stream between the rows of two arrays of joint vectors.

    Args:
        first: joint vectors `[P, sum of dims]`.
        second: joint vectors `[P, sum of dims]`, row i is compared with row i of `first`.

    Returns:
        `[P, streams]` in [-1, 1]; a stream of zeros has the cosine 0.
    """
    edges = np.cumsum([0, *dims]).tolist()
    products = [
        np.einsum("pd,pd->p", first[:, start:end], second[:, start:end])
        for start, end in pairwise(edges)
    ]
    return np.clip(np.stack(products, 1) * len(dims), -1, 1)


@dataclass(frozen=True)
class EmbeddingStore:
    """Embeddings of all clips of a shard set on disk, one `.npy` file per shard in `folder`.

    `starts` holds the first clip number of each shard and then the number of clips. `dims` gives
    the size of each stream; the streams lie side by side in the files.
    """

    folder: str
    starts: list[int]
    dims: dict[str, int]

    @classmethod
    def create(cls, shards: ShardSet, folder: Path) -> EmbeddingStore:
        """Make the empty store of a shard set; `embed_shard` fills it.

        Raises:
            FileExistsError: if there is a folder already.
        """
        folder.mkdir()
        return cls(str(folder), shards.starts.tolist(), shards.dims)

    def file(self, shard: int) -> Path:
        """File of the embeddings of one shard."""
        return Path(self.folder) / f"{shard:06d}.npy"

    def blocks(self) -> list[range]:
        """Clip numbers in blocks of `BLOCK`."""
        end = self.starts[-1]
        return [range(start, min(start + BLOCK, end)) for start in range(0, end, BLOCK)]

    def load(self, clips: NDArray[np.int64], streams: Sequence[str]) -> NDArray[np.float32]:
        """Joint vectors of `clips [B]` over some streams, `[B, sum of their dims]`."""
        embeddings = np.empty((len(clips), sum(self.dims.values())), np.float16)
        owners = owners_of(clips, self.starts)
        for shard in np.unique(owners).tolist():
            in_shard = owners == shard
            rows = np.load(self.file(shard), mmap_mode="r")
            embeddings[in_shard] = rows[clips[in_shard] - self.starts[shard]]
        ends = dict(zip(self.dims, np.cumsum(list(self.dims.values())).tolist(), strict=True))
        parts = [embeddings[:, ends[name] - self.dims[name] : ends[name]] for name in streams]
        return joint_vectors(np.concatenate(parts, 1), [part.shape[1] for part in parts])


def embed_shard(
    store: EmbeddingStore, place: str, digest: str, config: ReadConfig, number: int
) -> tuple[int, int]:
    """Write the embeddings of one shard into a store; a task of its own process.

    Args:
        place: folder or URL of the shard set.
        digest: digest that its manifest must have.
        number: which of its shards.

    Returns:
        Number of clips, and how many of them cannot be read. Those have the embedding 0.

    Raises:
        DataError: if the shard set has another digest.
    """
    shards = open_once(place, digest, config)
    unreadable, parts = 0, []
    clips = np.array(shards.clips_of(number))
    for start in range(0, len(clips), _CLIPS_PER_READ):
        block = clips[start : start + _CLIPS_PER_READ]
        streams, good = shards.read(block, ignore_bad)
        parts.append(embed(streams, shards.lengths[block]))
        unreadable += int((~good).sum())
    shards.release([number])
    with staged(store.file(number)) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(parts), allow_pickle=False)
    return len(clips), unreadable
