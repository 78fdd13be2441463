"""Clips of the micro-batch of all ranks that every clip of it is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from avvp_dist.runtime.ranks import Ranks


class NegativePool:
    """The `size` clips with the smallest hash, of the micro-batches of all ranks.

    A hash belongs to its clip, so the pool does not depend on how the clips are spread over the
    ranks, and a mean of hinges over the pool has the expectation of the mean over all clips. Its
    size bounds the computation and the traffic per clip for any number of ranks. No shape depends
    on values, so the host never waits for the device.

    Args:
        hashes: numbers in [0, 1), one for each clip of this rank, float `[B]`; infinity keeps a
            clip out of the pool.
        clips_per_rank: maximum of B over the ranks.
        size: number of clips in the pool; 0: all.
        ranks: ranks that share the pool; making one is a collective.
    """

    def __init__(self, hashes: Tensor, clips_per_rank: int, size: int, ranks: Ranks) -> None:
        self.ranks = ranks
        padded = F.pad(hashes, (0, clips_per_rank - len(hashes)), value=torch.inf)
        everyone = ranks.all_gather(padded)
        chosen = everyone.argsort(stable=True)[: size or None]
        rows = chosen - ranks.rank * clips_per_rank
        self.own = (rows >= 0) & (rows < len(hashes)) & everyone[chosen].isfinite()
        self.rows = rows.clamp(0, len(hashes) - 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Gather the pool's rows `[K, ...]` on every rank from the rows `[B, ...]` of each.

        Differentiable, and a collective. Where fewer than K clips have a finite hash, the last rows
        are zeros.
        """
        own = self.own.view(-1, *[1] * (x.ndim - 1))
        return self.ranks.all_reduce_sum(torch.where(own, x[self.rows], 0))
