"""Which clips of all ranks' micro-batch every clip of it is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from avvp_dist.runtime.ranks import Ranks


class NegativePool:
    """At most so many clips of all ranks' micro-batch, those with the least draws.

    Draws belong to clips, so the pool is the same however the clips are spread over ranks, and a
    hinge that is a mean over it has the expectation of one over all of them. Its size bounds what
    is computed and sent for a clip, however many ranks there are. No shape depends on values: a
    device is never waited for.

    Args:
        draws: a number in [0, 1) for each clip of this rank `[B]`; infinite: never in the pool.
        rows: the most clips that any rank has.
        most: clips of the pool; 0: all.
    """

    def __init__(self, draws: Tensor, rows: int, maximum: int, ranks: Ranks) -> None:
        self.ranks = ranks
        everyone = ranks.all_gather(F.pad(draws, (0, rows - len(draws)), value=torch.inf))
        chosen = everyone.argsort(stable=True)[: maximum or None]
        places = chosen - ranks.rank * rows
        self.own = (places >= 0) & (places < len(draws)) & everyone[chosen].isfinite()
        self.places = places.clamp(0, len(draws) - 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Of rows `[B, ...]` on each rank those of the pool's clips `[K, ...]`, on all ranks.

        With gradient; zeros where fewer than K clips can be in it. A collective.
        """
        own = self.own.view(-1, *[1] * (x.ndim - 1))
        return self.ranks.all_reduce_sum(torch.where(own, x[self.places], 0))
