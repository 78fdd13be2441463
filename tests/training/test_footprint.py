"""Memory, messages and operations of a step: what the stages divide, and what torch counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avvp_dist.config import TrainerConfig
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.training.footprint import PlannedRanks, Weights, measure, memory, messages

META = torch.device("meta")


class Model(nn.Module):
    """One linear layer whose loss is the mean of its output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 32, bias=False, device=META)
        self.frozen = nn.Parameter(torch.zeros(5, device=META), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.linear(x).mean()
        return loss, {}


def test_operations_and_activations_are_those_of_the_module() -> None:
    model = Model()
    assert Weights.of(model) == Weights(64 * 32, 5, 0)
    cost = measure(model, lambda: torch.empty(16, 64, device=META))
    assert cost.flops == 3 * 2 * 16 * 64 * 32
    output = 4 * 16 * 32
    assert output <= cost.activations <= 4 * (16 * 64 + 2 * 64 * 32 + 3 * 16 * 32) + 64
    assert model.linear.weight.grad is None


def test_planned_ranks_have_the_shapes_of_real_ones() -> None:
    ranks = PlannedRanks(0, 4, META)
    assert ranks.all_gather(torch.empty(3, 2, device=META)).shape == (12, 2)
    assert ranks.all_reduce_sum(torch.empty(3, 2, device=META)).shape == (3, 2)
    assert (ranks.broadcast_object("a"), ranks.init_device) == ("a", META)


def test_zero_divides_what_it_says_it_divides() -> None:
    weights = Weights(1_000_000, 0, 0)
    for stage, sizes in {
        0: (6e6, 4e6, 8e6),
        1: (2e6, 2e6 + 1e6, 3e6),
        2: (2e6, 0.5e6 + 1e6, 3e6),
        3: (2.5e6, 0.5e6 + 1e6, 3e6),
    }.items():
        found = memory(weights, TrainerConfig(zero_stage=stage, precision="bf16"), 4)
        assert tuple(found[n] for n in ("weights", "gradients", "optimiser")) == sizes
    sent = [
        sum(messages(weights, TrainerConfig(zero_stage=stage), 4).values()) for stage in range(4)
    ]
    assert sent == [6e6, 9e6, 9e6, 6e6]


@pytest.mark.launch
def test_the_pool_takes_three_collectives_of_the_planned_bytes(
    grounded: ShardSet, fork_ranks: Any, tmp_path: Path
) -> None:
    out = tmp_path / "found.json"
    process = fork_ranks("tests/training/collectives.py", str(grounded.folder), str(out), ranks=1)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    for found in json.loads(out.read_text()):
        planned = found["planned"]
        assert found["sent"] == [
            ["_allgather_base_.default", planned["representations"]],
            ["_allgather_base_.default", planned["traits"]],
            ["_reduce_scatter_base_.default", planned["gradients"]],
        ]
