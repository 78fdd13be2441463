"""Rates, counted operations, and the peak of a device."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from avvp_dist.training.throughput import Throughput, flops_per_clip, peak_flops


def test_rates_are_of_the_time_since_they_were_asked_for() -> None:
    meter = Throughput(flops=1e6, tokens=20, peak=1e9, world_size=2)
    for _ in meter.waits(range(3)):
        time.sleep(0.02)
        meter.count(100)
    rates = meter.rates()
    assert 1000 < rates["train/clips_per_second"] < 5000
    assert rates["train/tokens_per_second"] == pytest.approx(20 * rates["train/clips_per_second"])
    flops = rates["train/clips_per_second"] * 1e6 / 2
    assert rates["train/tflops_per_rank"] == pytest.approx(flops / 1e12)
    assert rates["train/mfu"] == pytest.approx(flops / 1e9)
    assert rates["train/data_wait"] < 0.2
    assert meter.rates()["train/clips_per_second"] == 0


def test_waiting_for_batches_is_told_from_training() -> None:
    meter = Throughput(1, 1, 1, 1)

    def slow() -> Iterator[None]:
        for _ in range(3):
            time.sleep(0.02)
            yield None

    for _ in meter.waits(slow()):
        pass
    assert meter.rates()["train/data_wait"] > 0.8


def test_operations_are_counted_by_torch() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(6), nn.Linear(6, 4)

        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.linear(self.norm(batch["x"])).sum()

    model = Model().train()
    before = model.norm.running_mean.clone()  # type: ignore[union-attr]
    assert flops_per_clip(model, {"x": torch.ones(5, 6)}, 5) == 3 * 2 * 6 * 4
    assert model.training and torch.equal(model.norm.running_mean, before)  # type: ignore[arg-type]


def test_the_peak_is_a_rate_of_this_machine() -> None:
    a = np.ones((512, 512), np.float32)
    started = time.perf_counter()
    a @ a
    seconds = time.perf_counter() - started
    assert peak_flops(torch.device("cpu"), torch.float32) > 0.1 * 2 * 512**3 / seconds
