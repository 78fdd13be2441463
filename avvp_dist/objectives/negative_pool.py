"""Clips of the micro-batch of all ranks that every clip of it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.hashing import hash_uniform
from avvp_dist.runtime.ranks import Ranks


def pool_places(
    size: int, places: int, seed: int, step: int, micro_batch: int
) -> NDArray[np.int64]:
    """Places of the micro-batch of all ranks whose clips are the pool, ascending, `[K]`.

    A systematic sample: every M/K-th of the M places, from a random start on that depends on seed,
    step and micro-batch. Each place is in it with probability K/M, and none is in it twice. So a
    mean of hinges over the pool has the expectation of the mean over all clips.

    Args:
        size: maximum number of clips in the pool; 0: all.
        places: M, clips in a micro-batch of all ranks.
    """
    count = min(size or places, places)
    (uniform,) = hash_uniform(np.array([micro_batch]), "negatives", seed, step)
    start = int(places * uniform)
    return (np.arange(count) * places + start) // count


class PoolRows(NamedTuple):
    """Rows that this rank lends to the pool, on the CPU. Their number does not change."""

    rows: Tensor
    """Row of each clip in this rank's micro-batch, int64 `[k]`, k = ceil(K / ranks)."""
    empty: Tensor
    """Rows that hold no clip, bool `[k]`: their place is empty, their clip could not be read, or
    fewer than k places of the pool are this rank's."""
    order: Tensor | None
    """Pool's rows among the k rows of every rank, int64 `[K]`; None if they are all of them."""

    @classmethod
    def choose(
        cls, pool: NDArray[np.int64], places: NDArray[np.integer], clips_per_rank: int, ranks: Ranks
    ) -> PoolRows:
        """Choose them on the host, where each rank knows those of all.

        Args:
            pool: places of the pool in the micro-batch of all ranks, ascending, `[K]`.
            places: place of each row in this rank's micro-batch, ascending, `[B]`.
            clips_per_rank: places in a micro-batch of one rank.
        """
        each = -(-len(pool) // ranks.size)
        starts = np.searchsorted(pool, np.arange(ranks.size + 1) * clips_per_rank)
        own = pool[starts[ranks.rank] : starts[ranks.rank + 1]] - ranks.rank * clips_per_rank
        rows, found = np.searchsorted(places, own), np.isin(own, places)
        missing = each - len(own)
        order = None
        if len(pool) < each * ranks.size:
            owners = pool // clips_per_rank
            order = torch.from_numpy(np.arange(len(pool)) - starts[owners] + each * owners)
        return cls(
            torch.from_numpy(np.pad(np.where(found, rows, 0), (0, missing))),
            torch.from_numpy(np.pad(~found, (0, missing), constant_values=True)),
            order,
        )


@dataclass(frozen=True)
class StoredClips:
    """Clips with their features as they are stored: those of a micro-batch, or of the pool."""

    streams: Mapping[str, Tensor]
    """Features `[B, T, D]` per stream."""
    real: Tensor
    """Snippets that are no padding, bool `[B, T]`; none in a row of the pool that holds no clip."""
    numbers: Tensor
    """Clip numbers `[B]`."""
    rule_index: Tensor | None = None
    """Index of each clip's link rule, `[B]`; None if there is one rule at most."""

    def take(self, rows: Tensor) -> StoredClips:
        """The clips in `rows [n]`, which may repeat."""
        return StoredClips(
            {name: x.index_select(0, rows) for name, x in self.streams.items()},
            *(x.index_select(0, rows) for x in self.others()),
        )

    def others(self) -> list[Tensor]:
        """Everything but the features, in the order of the fields."""
        return [self.real, self.numbers, *([] if self.rule_index is None else [self.rule_index])]


@dataclass(frozen=True)
class NegativePool:
    """The pool's clips on every rank, from the rows that each rank lends (`PoolRows`).

    The pool does not depend on how the clips are spread over the ranks. Its size bounds the
    computation and the traffic per clip for any number of ranks. No shape depends on values, so
    the host never waits for the device.
    """

    rows: Tensor
    empty: Tensor
    order: Tensor | None
    ranks: Ranks

    def __call__(self, x: Tensor, traits: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Gather the pool's rows `[K, ...]` of `x [B, ...]`, and of each of `traits [B, ...]`.

        Rows that hold no clip are zeros. Two collectives: of `x`, and of the bytes of all traits.
        The gradient, which only `x` has, takes one in the backward pass.
        """
        empty = self.empty.view(-1, *[1] * (x.ndim - 1))
        pool = self._gather(x.index_select(0, self.rows).masked_fill(empty, 0))
        return pool, self.traits(traits)

    def stored(self, clips: StoredClips) -> StoredClips:
        """Gather the pool's clips from those of this rank's micro-batch, in one collective."""
        gathered = self.traits([*clips.streams.values(), *clips.others()])
        features, others = gathered[: len(clips.streams)], gathered[len(clips.streams) :]
        return StoredClips(dict(zip(clips.streams, features, strict=True)), *others)

    @torch.no_grad()
    def traits(self, traits: Sequence[Tensor]) -> list[Tensor]:
        """Gather the pool's rows `[K, ...]` of each of `traits [B, ...]`, in one collective."""
        lent = torch.cat([_bytes(trait.index_select(0, self.rows)) for trait in traits], 1)
        everyone = self._gather(lent.masked_fill_(self.empty[:, None], 0))
        columns = everyone.split([_width(trait) for trait in traits], 1)
        return [_values(rows, trait) for rows, trait in zip(columns, traits, strict=True)]

    def _gather(self, rows: Tensor) -> Tensor:
        everyone = self.ranks.all_gather(rows)
        return everyone if self.order is None else everyone.index_select(0, self.order)


def _width(x: Tensor) -> int:
    """Bytes of a row."""
    return x.shape[1:].numel() * x.element_size()


def _bytes(x: Tensor) -> Tensor:
    """Bytes of each row of `x [n, ...]`, uint8 `[n, bytes]`."""
    return x.reshape(len(x), -1).view(torch.uint8)


def _values(rows: Tensor, like: Tensor) -> Tensor:
    """Inverse of `_bytes`: rows with the dtype and the shape of those of `like`."""
    aligned = rows.clone(memory_format=torch.contiguous_format)
    return aligned.view(like.dtype).view(-1, *like.shape[1:])
