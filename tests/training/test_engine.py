"""The engine's config, schedule, parameter groups and full weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from avvp_dist.config import OptimizerConfig, TrainerConfig
from avvp_dist.errors import ConfigError
from avvp_dist.training.engine import engine_config, full_state, lr_factor, parameter_groups


def test_micro_batch_is_the_global_batch_over_ranks_and_accumulation() -> None:
    trainer = TrainerConfig(out="x", batch_size=64, gradient_accumulation=4)
    config = engine_config(OptimizerConfig(), trainer, world_size=8)
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["train_batch_size"] == 64


def test_cosine_warms_up_and_ends_at_zero() -> None:
    optimizer = OptimizerConfig(schedule="cosine", warmup=0.1)
    factors = [lr_factor(optimizer, step, 100, 10) for step in range(101)]
    assert factors[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert factors[10] == 1.0 and factors[55] == pytest.approx(0.5) and factors[100] == 0.0


def test_steps_follow_epochs() -> None:
    optimizer = OptimizerConfig(schedule="step", warmup=0.0, decay=0.5, decay_every=5)
    assert [lr_factor(optimizer, epoch * 7, 700, 7) for epoch in (0, 4, 5, 9, 10)] == [
        1.0,
        1.0,
        0.5,
        0.5,
        0.25,
    ]


def test_biases_norms_and_frozen_parameters_do_not_decay() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    module[2].requires_grad_(False)
    decayed, plain = parameter_groups(module.parameters(), 0.1, 0.01)
    assert [tuple(p.shape) for p in decayed.params] == [(4, 3)]
    assert (decayed.weight_decay, plain.weight_decay) == (0.01, 0.0)
    assert len(plain.params) == 3


def test_full_state_keeps_buffers() -> None:
    class Engine:
        module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    module = Engine.module
    module(torch.randn(8, 2))
    state = full_state(Engine)
    assert state.keys() == module.state_dict().keys()
    assert torch.equal(state["1.running_mean"], module[1].running_mean)
    assert int(state["1.num_batches_tracked"]) == 1


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"gradient_cliping": 5.0}, r"unknown key gradient_cliping, did you mean"),
        ({"gradient_clipping": 5.0}, r"gradient_clipping follows from optimizer\.max_grad_norm"),
        (
            {"zero_optimization": {"stage": 2}},
            r".*stage follows from trainer\.zero_stage",
        ),
    ],
)
def test_deepspeed_keys_that_would_do_nothing_or_harm_are_refused(
    tmp_path: Path, keys: dict[str, Any], named: str
) -> None:
    file = tmp_path / "more.json"
    file.write_text(json.dumps(keys))
    with pytest.raises(ConfigError, match=rf"trainer\.deepspeed={file}: {named}"):
        engine_config(OptimizerConfig(), TrainerConfig(out="x", deepspeed=str(file)), 1)


def test_more_deepspeed_keys_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "more.json"
    file.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 7}}))
    trainer = TrainerConfig(out="x", zero_stage=2, deepspeed=str(file))
    zero = engine_config(OptimizerConfig(), trainer, 1)["zero_optimization"]
    assert (zero["stage"], zero["reduce_bucket_size"]) == (2, 7)
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"more\.json: Expecting property name"):
        engine_config(OptimizerConfig(), trainer, 1)
