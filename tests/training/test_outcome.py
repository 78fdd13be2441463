"""The outcome of a step: means over clips, and numbers that are read later."""

from __future__ import annotations

import pytest
import torch

from avvp_dist.runtime.ranks import Ranks, single_rank
from avvp_dist.training.outcome import StepLosses, StepOutcome


def losses(*parts: tuple[float, float]) -> StepLosses:
    made = StepLosses()
    for value, weight in parts:
        made.add({"loss": torch.tensor(value), "own": torch.tensor(2 * value)}, weight)
    return made


def test_means_are_over_the_clips_that_were_read() -> None:
    assert losses((1.0, 0.5), (4.0, 0.25)).means(single_rank()).tolist() == [2.0, 4.0]
    # A step without any clip has no mean, and divides nothing by zero.
    assert losses((3.0, 0.0)).means(single_rank()).tolist() == [0.0, 0.0]


def test_means_weigh_ranks_by_their_clips() -> None:
    class Two(Ranks):
        def all_reduce_mean(self, value: torch.Tensor) -> torch.Tensor:
            return (value + torch.tensor([8.0, 0.0, 1.5])) / 2

    made = losses((4.0, 0.5)).means(Two(0, 2, torch.device("cpu")))
    assert float(made[0]) == pytest.approx((4.0 * 0.5 + 8.0) / (0.5 + 1.5))


def test_an_outcome_names_its_numbers() -> None:
    made, norm = losses((2.0, 1.0)), torch.tensor(0.5)
    flags = {"stop": True, "overdue": False}
    sent = StepOutcome.send(3, [], made, norm, flags, {"train/lr": 0.1}, single_rank())
    assert sent.read() == {"norm": 0.5, "stop": 1.0, "overdue": 0.0, "loss": 2.0, "own": 4.0}
    silent = StepOutcome.send(3, [], made, norm, flags, {}, single_rank())
    assert silent.read() == {"norm": 0.5, "stop": 1.0, "overdue": 0.0}


def test_the_parts_that_are_not_finite_are_named() -> None:
    made = StepLosses()
    made.add({"loss": torch.tensor(float("nan")), "own": torch.tensor(1.0)}, 1.0)
    assert made.nonfinite() == ["loss"]
    assert losses((1.0, 1.0)).nonfinite() == []
