"""The clip stream: an order that is a pure function of (seed, epoch, clips)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import ConfigError


class ClipStream:
    """Global batches of clip numbers, the same ones for every number of ranks.

    An epoch is a permutation of `clips [N]`; step s of it takes the s-th slice of `batch_size`,
    rank r the r-th part of that slice, in `micro_batches` equal pieces. The last incomplete batch
    is dropped. The state is (epoch, step), so going on from any step costs nothing.

    Raises:
        ConfigError: if the ranks do not divide the batch, or an epoch has no whole batch.
    """

    def __init__(
        self,
        clips: NDArray[np.integer],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
    ) -> None:
        if batch_size % (world_size * micro_batches):
            raise ConfigError(
                f"trainer.batch_size={batch_size} is not a multiple of {world_size} ranks x "
                f"trainer.accumulate={micro_batches}"
            )
        if len(clips) < batch_size:
            raise ConfigError(
                f"trainer.batch_size={batch_size} is more than the {len(clips)} clips there are"
            )
        self.clips, self.batch_size, self.seed = clips, batch_size, seed
        self.rank, self.world_size, self.micro_batches = rank, world_size, micro_batches
        self.steps_per_epoch = len(clips) // batch_size
        self.epoch = self.step = 0
        self._order: tuple[int, NDArray[np.integer]] | None = None

    def next(self) -> list[NDArray[np.integer]]:
        """This rank's micro-batches of the next global batch."""
        part = self.batch_size // self.world_size
        start = self.rank * part
        batch = self.global_batch(self.epoch, self.step)[start : start + part]
        self.step += 1
        if self.step == self.steps_per_epoch:
            self.epoch, self.step = self.epoch + 1, 0
        return np.split(batch, self.micro_batches)

    def global_batch(self, epoch: int, step: int) -> NDArray[np.integer]:
        """The clips of one step over all ranks, `[batch_size]`."""
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.clips))
            self._order = (epoch, self.clips[order])
        start = step * self.batch_size
        return self._order[1][start : start + self.batch_size]

    def state(self) -> dict[str, int]:
        """Where the stream stands, as plain data."""
        return {"epoch": self.epoch, "step": self.step}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from a `state`."""
        self.epoch, self.step = state["epoch"], state["step"]
