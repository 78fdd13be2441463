"""The clip stream: which clips each step takes, a pure function of the step."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from avvp_dist.commit import digest
from avvp_dist.errors import CheckpointError, ConfigError
from avvp_dist.loading.order import ClipPool, Numbers, epoch_order

EMPTY = -1
"""In the place of a clip: an incomplete last batch is filled up with these."""


class ClipStream:
    """Global batches of clip numbers, the same ones for every number of ranks.

    Step s belongs to epoch s // steps_per_epoch and takes a slice of `batch_size` clips of that
    epoch's order. Each micro-batch is the next part of the slice, and rank r takes the r-th part of
    that: what is in it does not depend on the number of ranks. A stream has no state but the step,
    so going on from any step costs nothing.

    Args:
        pools: the clips of each shard set, and how often an epoch sees them.
        block: shards in a block, or 0 for a global order (`epoch_order`).
        pad: fill the last incomplete batch of an epoch up with `EMPTY`; else it is dropped.
        gradient_accumulation: micro-batches that each rank's part is cut into.

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
                remedy="The ranks share each batch evenly: change one of them",
            )
        self.clips_per_epoch = sum(pool.share for pool in pools)
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
        """The clips of one step over all ranks, `[batch_size]`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.batch_size
        batch = self._order(epoch)[start : start + self.batch_size]
        return np.append(batch, np.full(self.batch_size - len(batch), EMPTY))

    def batch(self, step: int) -> Numbers:
        """This rank's part of it, `[batch_size / ranks]`, one micro-batch after the other."""
        parts = self.global_batch(step).reshape(self.gradient_accumulation, self.world_size, -1)
        return parts[:, self.rank].ravel()

    def planned(self, step: int) -> int:
        """Clips of the step over all ranks, without the empty places."""
        within = step % self.steps_per_epoch
        return min(self.batch_size, self.clips_per_epoch - within * self.batch_size)

    def identity(self) -> dict[str, Any]:
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

    def check_same(self, saved: dict[str, Any], lineage: dict[str, list[str]]) -> None:
        """Raise `CheckpointError` naming what changed since `saved`, the identity of a checkpoint.

        Args:
            lineage: digests and versions of what is read.
        """
        now = {**self.identity(), **lineage}
        changed = [
            f"{key}: {saved.get(key)} then, {value} now"
            for key, value in now.items()
            if saved.get(key) != value
        ]
        if changed:
            raise CheckpointError(
                "the checkpoint belongs to another order of clips: " + "; ".join(changed),
                remedy="Put these back, or train into another trainer.out",
                shared=True,
            )

    def _order(self, epoch: int) -> Numbers:
        with self._lock:
            if epoch not in self._orders:
                # The next epoch's is asked for while this one's is still needed.
                self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
                self._orders[epoch] = epoch_order(self.pools, self.seed, epoch, self.block)
            return self._orders[epoch]
