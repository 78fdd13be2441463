"""Held-out clips: which clips are trained on, and which of the others validate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import DataError
from avvp_dist.loading.mixture import Mixture


def training_clips(data: Mixture, heldout: float) -> NDArray[np.bool_]:
    """Mask of the clips that are trained on, `[N]`; the fraction `heldout` is not.

    A hash of the clip's id decides. So a clip stays on its side when a shard set grows, is packed
    anew or mixed with others.

    Raises:
        DataError: if no clip is left to train on.
    """
    trained: NDArray[np.bool_] = (data.hashes >> np.uint64(32)) >= heldout * 2**32
    if not (trained & ~data.excluded).any():
        raise DataError(
            f"{data.name}: all {len(data)} clips are held out", remedy="Lower data.heldout"
        )
    return trained


def validation_clips(
    data: Mixture, trained: NDArray[np.bool_], maximum: int
) -> NDArray[np.integer]:
    """Up to `maximum` clips that are neither `trained [N]` on nor excluded, ascending.

    Every shard set of a mixture gives its first ones, in turns.
    """
    held = np.flatnonzero(~trained & ~data.excluded)
    first = np.searchsorted(held, data.starts)
    within = np.concatenate([np.arange(count) for count in np.diff(first)])
    return np.sort(held[np.argsort(within, kind="stable")[:maximum]])
