"""Clips of one list found in another by their ids: annotations, predictions and shard sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import DataError


def align(
    clips: Sequence[str],
    ids: Sequence[str],
    *,
    place: object,
    what: str = "clips",
    remedy: str = "",
) -> NDArray[np.int64]:
    """Row in `ids [M]` of each of `clips [N]`, `[N]`; further ids are ignored.

    Args:
        place: file or shard set that the ids come from, for the error.
        what: name of the clips that are looked for, for the error.
        remedy: advice to a user whose clips are missing.

    Raises:
        DataError: if clips are missing, with their number and the first one, or an id occurs
            twice.
    """
    rows = {clip: row for row, clip in enumerate(ids)}
    if len(rows) < len(ids):
        twice = next(clip for row, clip in enumerate(ids) if rows[clip] != row)
        raise DataError(f"{place}: clip {twice} occurs twice", remedy="Ids must be unique")
    missing = [clip for clip in clips if clip not in rows]
    if missing:
        raise DataError(
            f"{place} lacks {len(missing)} of {len(clips)} {what}, first {missing[0]}",
            remedy=remedy,
        )
    return np.array([rows[clip] for clip in clips], np.int64)
