"""The clip stream: which clips each step takes, a pure function of the step."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np

from avvp_dist.commit import digest
from avvp_dist.errors import CheckpointError, ConfigError
from avvp_dist.loading.order import ClipPool, Numbers, epoch_order

EMPTY = -1
"""Clip number of an empty place: it fills an incomplete last batch."""


class ClipStream:
    """Global batches of clip numbers, which do not depend on the number of ranks.

    Step s belongs to epoch s // steps_per_epoch and takes a slice of `batch_size` clips of that
    epoch's order. The slice is cut into micro-batches, and each micro-batch into one part per
    rank. A stream has no state but the step, so that training resumes from any step at no cost.

    Args:
        pools: the clips of each shard set, and their weight in an epoch.
        seed: of the order.
        block: number of shards in a block, or 0 for a global order (`epoch_order`).
        pad: fill the incomplete last batch of an epoch with `EMPTY`; otherwise it is dropped.
        gradient_accumulation: number of micro-batches in a step.

    Raises:
        ConfigError: if the ranks do not divide the batch, or an epoch has no batch.
    """

    def __init__(
        self,
        pools: Sequence[ClipPool],
        batch_size: int,
        *,
        seed: int,
        block: int = 0,
        pad: bool = False,
        rank: int = 0,
        world_size: int = 1,
        gradient_accumulation: int = 1,
    ) -> None:
        if batch_size % (world_size * gradient_accumulation):
            raise ConfigError(
                f"trainer.batch_size={batch_size} is not a multiple of {world_size} ranks x "
                f"trainer.gradient_accumulation={gradient_accumulation}",
                remedy="Every rank takes an equal part of each batch: change one of them",
            )
        self.clips_per_epoch = sum(pool.clips_per_epoch for pool in pools)
        if not self.clips_per_epoch:
            raise ConfigError("an epoch has no clips: data.weights are too small")
        if self.clips_per_epoch < batch_size and not pad:
            raise ConfigError(
                f"trainer.batch_size={batch_size} is more than the {self.clips_per_epoch} clips of "
                "an epoch",
                remedy="Lower it, or set data.last_batch=pad",
            )
        self.pools, self.batch_size, self.seed = pools, batch_size, seed
        self.block, self.pad = block, pad
        self.rank, self.world_size, self.gradient_accumulation = (
            rank,
            world_size,
            gradient_accumulation,
        )
        whole, rest = divmod(self.clips_per_epoch, batch_size)
        self.steps_per_epoch = whole + (1 if pad and rest else 0)
        self._orders: dict[int, Numbers] = {}
        self._lock = threading.Lock()

    def global_batch(self, step: int) -> Numbers:
        """Clips of one step over all ranks, `[batch_size]`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.batch_size
        batch = self._order(epoch)[start : start + self.batch_size]
        return np.append(batch, np.full(self.batch_size - len(batch), EMPTY))

    def batch(self, step: int) -> Numbers:
        """Clips of one step on this rank, `[batch_size / ranks]`, by micro-batch."""
        parts = self.global_batch(step).reshape(self.gradient_accumulation, self.world_size, -1)
        return parts[:, self.rank].ravel()

    def planned(self, step: int) -> int:
        """Number of clips of a step over all ranks, without the empty places."""
        within = step % self.steps_per_epoch
        return min(self.batch_size, self.clips_per_epoch - within * self.batch_size)

    def identity(self) -> dict[str, object]:
        """Everything the order depends on, as plain data."""
        return {
            "trainer.seed": self.seed,
            "trainer.batch_size": self.batch_size,
            "data.order": f"block of {self.block}" if self.block else "global",
            "data.last_batch": "pad" if self.pad else "drop",
            "data.weights": [pool.weight for pool in self.pools],
            "clips (data.heldout)": digest(
                [[len(p.clips), int(p.clips.sum())] for p in self.pools]
            ),
        }

    def check_same(self, saved: Mapping[str, object], lineage: Mapping[str, list[str]]) -> None:
        """Compare with `saved`, the identity and lineage in a checkpoint.

        Args:
            lineage: digests and versions of the data that are read now.

        Raises:
            CheckpointError: naming every entry that differs.
        """
        now = {**self.identity(), **lineage}
        changed = [
            f"{key}: {saved.get(key, 'not known')} then, {value} now"
            for key, value in now.items()
            if saved.get(key) != value
        ]
        if changed:
            raise CheckpointError(
                "the checkpoint belongs to other data or another order: " + "; ".join(changed),
                remedy="Put these back, or train into another trainer.out",
                shared=True,
            )

    def _order(self, epoch: int) -> Numbers:
        with self._lock:
            if epoch not in self._orders:
                # The loader asks for the next epoch while this one is still needed.
                self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
                self._orders[epoch] = epoch_order(self.pools, self.seed, epoch, self.block)
            return self._orders[epoch]
