"""Throughput of a training: its rates, its FLOP, and the peak of its device."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")


class Throughput:
    """Rates since the last call of `rates` or `restart`.

    Args:
        flops: FLOP of one clip, forward and backward.
        tokens: tokens of one clip, without padding.
        peak: measured FLOP/s of this rank's device in matrix products.
        world_size: ranks that share the clips.
    """

    def __init__(self, flops: float, tokens: float, peak: float, world_size: int) -> None:
        self.flops, self.tokens, self.peak, self.world_size = flops, tokens, peak, world_size
        self.restart()

    def restart(self) -> None:
        """Begin anew, after something other than training has taken time."""
        self._since, self._clips, self._waited = time.perf_counter(), 0, 0.0

    def waits(self, batches: Iterable[T]) -> Iterator[T]:
        """Iterate over `batches`, and count the time to get them as waiting."""
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
        """Count a step over `clips` clips of all ranks together."""
        self._clips += clips

    def rates(self) -> dict[str, float]:
        """Metrics by name; begins anew.

        `mfu` is the fraction of the measured peak, `data_wait` the fraction of the time that this
        rank waited for batches.
        """
        seconds = max(time.perf_counter() - self._since, 1e-9)
        clips = self._clips / seconds
        flops = clips * self.flops / self.world_size
        rates = {
            "train/clips_per_second": clips,
            "train/tokens_per_second": clips * self.tokens,
            "train/tflops_per_rank": flops / 1e12,
            "train/mfu": flops / self.peak,
            "train/data_wait": self._waited / seconds,
        }
        self.restart()
        return rates


@torch.no_grad()
def flops_per_clip(module: nn.Module, batch: object, clips: int) -> float:
    """FLOP of a clip's training step: three times those of its forward pass; a collective.

    Counted by torch in matrix products and attention, without the cost of activation checkpointing.
    """
    training = module.training
    module.eval()  # running statistics stay as they are
    with FlopCounterMode(display=False) as counter:
        module(batch)
    module.train(training)
    return 3 * counter.get_total_flops() / clips


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products on a device, the best of three tries; measured once."""
    size = 8192
    if device.type == "cpu":
        # Without instructions for bfloat16, a CPU takes seconds for large products in it.
        size = 1024 if dtype == torch.float32 else 256
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        product = a @ b
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
