"""How well a training run does: its rates, its peak, and steps that had to be skipped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from avvp_dist.data.loader import Read
from avvp_dist.data.mixture import Mixture
from avvp_dist.errors import NumericsError
from avvp_dist.tracking.run import Run
from avvp_dist.training.ranks import Ranks

T = TypeVar("T")


class Skips:
    """Steps without an update, since a value was not finite.

    Args:
        most: so many in a row are allowed.
    """

    def __init__(self, most: int, data: Mixture, run: Run, ranks: Ranks) -> None:
        self.most, self.data, self.run, self.ranks = most, data, run, ranks
        self.total = self._in_a_row = 0

    def note(
        self, step: int, applied: bool, parts: dict[str, Tensor], reads: Sequence[Read]
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
        found = self.ranks.collect((wrong, _suspects(reads) if wrong else []))
        names = list(dict.fromkeys(n for names, _ in found for n in names)) or ["the gradient"]
        clips = [self.data.id(clip) for _, clips in found for clip in clips]
        said = (
            f"step {step} is skipped: {', '.join(names)} not finite"
            + (f" on rank {[rank for rank, (w, _) in enumerate(found) if w]}" if clips else "")
            + (f", clips {', '.join(clips[:8])}" if clips else "")
        )
        if self._in_a_row > self.most:
            raise NumericsError(
                f"{said}; {self._in_a_row} in a row",
                remedy="Lower optimizer.lr or set optimizer.clip; checkpoints are untouched",
                shared=True,
            )
        if self.ranks.first:
            tqdm.write(said, file=sys.stderr)


def _suspects(reads: Sequence[Read]) -> list[int]:
    """Clips with features that are not finite, or where all are, every clip of the batch."""
    clips, bad = [], []
    for read in reads:
        finite = torch.isfinite(read.room).all(1)
        clips += read.clips.tolist()
        bad += read.clips[(~finite).numpy()].tolist()
    return bad or clips


class Meter:
    """Rates since they were last asked for, of one rank and of all.

    Args:
        flops: of one clip, forward and backward.
        tokens: of one clip, without padding.
        peak: FLOP/s that this rank's device reaches in matrix products, as measured here.
        world_size: ranks that share the clips.
    """

    def __init__(self, flops: float, tokens: float, peak: float, world_size: int) -> None:
        self.flops, self.tokens, self.peak, self.world_size = flops, tokens, peak, world_size
        self.restart()

    def restart(self) -> None:
        """Forget what was counted: something other than training has taken time."""
        self._since, self._clips, self._waited = time.perf_counter(), 0, 0.0

    def waits(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the time to get them counts as waiting."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            yield batch

    def count(self, clips: int) -> None:
        """A step over so many clips, on all ranks together, has ended."""
        self._clips += clips

    def rates(self) -> dict[str, float]:
        """Metrics by name, and start again.

        `mfu` is the share of the measured peak; `data_wait` the share of the time that this rank
        waited for batches.
        """
        seconds = max(time.perf_counter() - self._since, 1e-9)
        clips = self._clips / seconds
        flops = clips * self.flops / self.world_size
        found = {
            "clips_per_second": clips,
            "tokens_per_second": clips * self.tokens,
            "tflops_per_rank": flops / 1e12,
            "mfu": flops / self.peak,
            "data_wait": self._waited / seconds,
        }
        self.restart()
        return found


@torch.no_grad()
def flops_per_clip(module: nn.Module, batch: dict[str, object], clips: int) -> float:
    """Floating point operations of a clip's training step: three times those of its forward pass.

    Of matrix products and attention, as torch counts them; all ranks must call it. What
    recomputed activations cost is not among them.
    """
    training = module.training
    module.eval()  # running statistics stay as they are
    with FlopCounterMode(display=False) as counter:
        module(batch)
    module.train(training)
    return 3 * counter.get_total_flops() / clips


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products on a device, the best of a few."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        product = a @ b
        float(product[0, 0])  # waits for it
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
