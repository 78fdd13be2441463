"""Refined weak labels: which of a clip's labels belong to its sound, which to its picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import staged
from avvp_dist.errors import DataError


def save_refined(path: Path, ids: Sequence[str], labels: NDArray[np.bool_]) -> None:
    """Write `labels [N, 2, C]` (audio, visual) of the clips `ids` as npz."""
    arrays: dict[str, Any] = {"filenames": np.array(ids), "labels": labels}
    with staged(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_refined(path: Path, ids: Sequence[str], weak: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The labels `[N, 2, C]` of the clips `ids`, whose weak labels are `weak [N, C]`.

    Raises:
        DataError: for a file that is missing, broken or of other shape, for a clip that it lacks
            and for a label that is not among the clip's weak ones.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            rows = {str(clip): row for row, clip in enumerate(file["filenames"])}
            labels = file["labels"].astype(bool)
    except Exception as error:  # a file that is damaged or something else fails in many ways
        reason = (str(error) or repr(error)).splitlines()[0]
        raise DataError(f"{path} is no file of refined labels: {reason}") from None
    if labels.shape != (len(rows), 2, weak.shape[1]):
        raise DataError(
            f"{path}: labels is {list(labels.shape)}, expected {[len(rows), 2, weak.shape[1]]}"
        )
    missing = [clip for clip in ids if clip not in rows]
    if missing:
        raise DataError(
            f"{path} lacks {len(missing)} of {len(ids)} clips, first {missing[0]}",
            remedy="Refine the labels of this shard set",
        )
    found: NDArray[np.bool_] = labels[[rows[clip] for clip in ids]]
    added = (found & ~weak[:, None]).any((1, 2))
    if added.any():
        raise DataError(
            f"{path}: clip {ids[int(added.argmax())]} has a label that is not among its weak "
            f"labels, {int(added.sum())} clips in all"
        )
    return found
