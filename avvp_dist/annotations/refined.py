"""Refined weak labels: which of a clip's labels belong to its sound, which to its picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.annotations.alignment import align
from avvp_dist.commit import staged
from avvp_dist.errors import DataError, first_line


def save_refined(path: Path, ids: Sequence[str], labels: NDArray[np.bool_]) -> None:
    """Write `labels [N, 2, C]` (audio, visual) of the clips `ids [N]` as npz."""
    with staged(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, filenames=np.array(ids), labels=labels)


def load_refined(path: Path, ids: Sequence[str], weak: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Refined labels `[N, 2, C]` of the clips `ids [N]`, whose weak labels are `weak [N, C]`.

    Raises:
        DataError: naming the file, if it is missing, broken or of another shape, lacks a clip, or
            has a label that is not among the clip's weak ones.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [str(clip) for clip in file["filenames"]]
            labels = file["labels"].astype(bool)
    except Exception as error:  # a damaged file fails in many ways
        reason = first_line(error)
        raise DataError(f"{path} is no file of refined labels: {reason}") from None
    if labels.shape != (len(names), 2, weak.shape[1]):
        raise DataError(
            f"{path}: labels is {list(labels.shape)}, expected {[len(names), 2, weak.shape[1]]}"
        )
    rows = align(ids, names, place=path, remedy="Refine the labels of this shard set")
    refined: NDArray[np.bool_] = labels[rows]
    added = (refined & ~weak[:, None]).any((1, 2))
    if added.any():
        raise DataError(
            f"{path}: clip {ids[int(added.argmax())]} has a label that is not among its weak "
            f"labels, {int(added.sum())} clips in all"
        )
    return refined
