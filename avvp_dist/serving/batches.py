"""Clips of a request as batches, and the export that a model is loaded from."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import avvp_dist
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


def prefer_installed_package() -> None:
    """Take the model's copy of this package from `sys.path` if another one is in use.

    MLflow puts the copy first. Processes that are spawned would import it, and it lacks whatever
    serving does not need.
    """
    used = Path(avvp_dist.__file__).parent
    copies = {place for place in sys.path if Path(place).name == "code"}
    unused = {one for one in copies if (Path(one) / used.name).is_dir()} - {str(used.parent)}
    sys.path[:] = [place for place in sys.path if place not in unused]


def verified(export: Path) -> Path:
    """Compare the files of an export with its manifest.

    Raises:
        CheckpointError: naming one that was changed.
    """
    faults = verify_folder(export)
    if faults:
        raise CheckpointError(faults[0], remedy="Download or register the model again")
    return export
