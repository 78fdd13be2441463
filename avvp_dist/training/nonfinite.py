"""Steps without an update, because a loss or a gradient was not finite."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from tqdm import tqdm

from avvp_dist.errors import NumericsError
from avvp_dist.loading.loader import ClipBatch
from avvp_dist.loading.mixture import Mixture
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.training.outcome import StepLosses

_NAMED = 8
"""Clips that a message names."""


class NonfiniteSteps:
    """Counter of steps without an update because a value was not finite.

    Args:
        maximum: allowed number of such steps in a row.
    """

    def __init__(self, maximum: int, data: Mixture, ranks: Ranks) -> None:
        self.maximum, self.data, self.ranks = maximum, data, ranks
        self.total = self._in_a_row = 0

    def note(
        self,
        step: int,
        applied: bool,
        losses: StepLosses,
        micro_batches: Sequence[ClipBatch],
    ) -> None:
        """Count a step; all ranks agree on whether it was `applied`.

        Raises:
            NumericsError: after more than `maximum` skipped steps in a row, naming the clips of the
                last one.
        """
        if applied:
            self._in_a_row = 0
            return
        self.total, self._in_a_row = self.total + 1, self._in_a_row + 1
        wrong = losses.nonfinite()
        suspects = _suspects(micro_batches) if wrong else []
        by_rank = self.ranks.all_gather_object((wrong, suspects))
        names = list(dict.fromkeys(n for names, _ in by_rank for n in names)) or ["the gradient"]
        clips = [self.data.id(clip) for _, numbers in by_rank for clip in numbers]
        ranks = [rank for rank, (names_there, _) in enumerate(by_rank) if names_there]
        message = f"step {step} is skipped: {', '.join(names)} not finite" + (
            f" on rank {ranks}, clips {', '.join(clips[:_NAMED])}" if clips else ""
        )
        if self._in_a_row > self.maximum:
            raise NumericsError(
                f"{message}; {self._in_a_row} in a row",
                remedy="Lower optimizer.lr or set optimizer.max_grad_norm; checkpoints are kept",
                shared=True,
            )
        if self.ranks.is_main:
            tqdm.write(message, file=sys.stderr)


def _suspects(micro_batches: Sequence[ClipBatch]) -> list[int]:
    """Clips with features that are not finite; all clips of the step if there are none."""
    clips, bad = [], []
    for batch in micro_batches:
        # The streams alone: between them the buffer holds headers of the tar.
        parts = [torch.isfinite(x).flatten(1).all(1) for x in batch.streams.values()]
        finite = torch.stack(parts).all(0)
        clips += batch.clips.tolist()
        bad += batch.clips[(~finite).numpy()].tolist()
    return bad or clips
