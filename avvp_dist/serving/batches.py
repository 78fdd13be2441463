"""Clips of a request as batches, and the export that a model is loaded from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from avvp_dist.commit import verify_folder
from avvp_dist.errors import CheckpointError
from avvp_dist.serving.requests import ClipRequest

_CLIPS_AT_ONCE = 64


def batches(clips: Sequence[ClipRequest]) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Divide clips into batches, in their order, with zeros behind the end of shorter clips.

    Yields:
        Features `[B, T, D]` per stream, and the length of each clip, `[B]`.
    """
    for start in range(0, len(clips), _CLIPS_AT_ONCE):
        some = clips[start : start + _CLIPS_AT_ONCE]
        streams = {
            name: pad_sequence([torch.from_numpy(c.streams[name]) for c in some], batch_first=True)
            for name in some[0].streams
        }
        yield streams, torch.tensor([len(next(iter(c.streams.values()))) for c in some])


def verified(export: Path) -> Path:
    """Compare the files of an export with its manifest.

    Raises:
        CheckpointError: naming one that was changed.
    """
    faults = verify_folder(export)
    if faults:
        raise CheckpointError(faults[0], remedy="Download or register the model again")
    return export
