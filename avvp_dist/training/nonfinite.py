"""Steps without an update, because a loss or a gradient was not finite."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from avvp_dist.errors import NumericsError
from avvp_dist.loading.loader import ClipBatch
from avvp_dist.loading.mixture import Mixture
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.tracking.run import Run


class NonfiniteSteps:
    """Steps without an update, since a value was not finite.

    Args:
        most: so many in a row are allowed.
    """

    def __init__(self, maximum: int, data: Mixture, run: Run, ranks: Ranks) -> None:
        self.maximum, self.data, self.run, self.ranks = maximum, data, run, ranks
        self.total = self._in_a_row = 0

    def note(
        self, step: int, applied: bool, parts: dict[str, Tensor], reads: Sequence[ClipBatch]
    ) -> None:
        """Count a step; all ranks agree on whether it was `applied`.

        Raises:
            NumericsError: when too many in a row were not, with the clips of this one.
        """
        if applied:
            self._in_a_row = 0
            return
        self.total, self._in_a_row = self.total + 1, self._in_a_row + 1
        wrong = [name for name, part in parts.items() if not torch.isfinite(part).all()]
        found = self.ranks.all_gather_object((wrong, _suspects(reads) if wrong else []))
        names = list(dict.fromkeys(n for names, _ in found for n in names)) or ["the gradient"]
        clips = [self.data.id(clip) for _, clips in found for clip in clips]
        said = (
            f"step {step} is skipped: {', '.join(names)} not finite"
            + (f" on rank {[rank for rank, (w, _) in enumerate(found) if w]}" if clips else "")
            + (f", clips {', '.join(clips[:8])}" if clips else "")
        )
        if self._in_a_row > self.maximum:
            raise NumericsError(
                f"{said}; {self._in_a_row} in a row",
                remedy="Lower optimizer.lr or set optimizer.max_grad_norm; checkpoints are kept",
                shared=True,
            )
        if self.ranks.is_main:
            tqdm.write(said, file=sys.stderr)


def _suspects(reads: Sequence[ClipBatch]) -> list[int]:
    """Clips with features that are not finite, or where all are, every clip of the batch."""
    clips, bad = [], []
    for read in reads:
        finite = torch.isfinite(read.buffer).all(1)
        clips += read.clips.tolist()
        bad += read.clips[(~finite).numpy()].tolist()
    return bad or clips
