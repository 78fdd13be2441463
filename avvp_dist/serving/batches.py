"""Clips of a request as the windows of a model, which reads them in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.parsing.windows import cut_windows
from avvp_dist.serving.requests import ClipRequest

Outputs = Sequence[NDArray[np.float32]]
"""Arrays that a model makes of windows, `[W, ...]` each."""
Run = Callable[[dict[str, Tensor], Tensor], Outputs]
"""Makes them of features `[W, T, D]` by stream, and of the number of seconds in each, `[W]`."""

_WINDOWS_AT_ONCE = 64


def run_clips(run: Run, clips: Sequence[ClipRequest], snippets: int) -> Iterator[Outputs]:
    """Run a model over the windows of all clips, see `cut_windows`.

    Args:
        snippets: T, the number of snippets in a window.

    Yields:
        The outputs of each clip.
    """
    cut = [cut_windows(clip.streams, snippets) for clip in clips]
    streams = {name: torch.cat([one[name] for one in cut]) for name in cut[0]}
    counts = [len(next(iter(one.values()))) for one in cut]
    lengths = torch.tensor([min(clip.seconds, snippets) for clip in clips])
    lengths = lengths.repeat_interleave(torch.tensor(counts))
    parts = [
        run({name: rows[at] for name, rows in streams.items()}, lengths[at])
        for at in torch.arange(len(lengths)).split(_WINDOWS_AT_ONCE)
    ]
    ends = np.cumsum(counts)[:-1]
    outputs = [np.split(np.concatenate(one), ends) for one in zip(*parts, strict=True)]
    yield from zip(*outputs, strict=True)
