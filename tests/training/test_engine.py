"""The engine's config, schedule, parameter groups and full weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from avvp_dist.config import EncoderConfig, OptimizerConfig, TrainerConfig
from avvp_dist.errors import ConfigError
from avvp_dist.models.encoder import Encoder
from avvp_dist.runtime.ranks import connect
from avvp_dist.training.engine import (
    compile_encoder,
    engine_config,
    frozen_weights,
    full_state,
    lr_factor,
    make_engine,
    parameter_groups,
    planned_steps,
    release_engine,
    update,
)
from avvp_dist.training.precision import model_dtype
from tests.training.operations import Operations


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


def test_steps_of_the_learning_rate_may_be_optimiser_steps() -> None:
    optimizer = OptimizerConfig(
        schedule="step", warmup=0.0, decay=0.5, decay_every=20, decay_unit="steps"
    )
    factors = [lr_factor(optimizer, step, 100, steps_per_epoch=3) for step in (0, 19, 20, 59, 60)]
    assert factors == [1.0, 1.0, 0.5, 0.25, 0.125]


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"), [(4, 0, 28), (4, 30, 28), (4, 9, 9), (0, 30, 30)]
)
def test_epochs_or_steps_end_a_training(epochs: int, max_steps: int, steps: int) -> None:
    trainer = TrainerConfig(epochs=epochs, max_steps=max_steps)
    assert planned_steps(trainer, steps_per_epoch=7) == steps


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
    state = full_state(Engine, {})
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


DIMS = {"audio": 8, "visual": 8}
WIDTH = 320
"""Matrices of more than 100,000 numbers, which ZeRO 3 splits."""


def stepped(
    stage: int, precision: str, *, accumulation: int = 1, frozen: bool = True
) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """An engine after two steps, the weights before them, and the frozen ones."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))
    module[0].requires_grad_(not frozen)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    kept = frozen_weights(module)
    optimizer = OptimizerConfig(lr=1e-3)
    trainer = TrainerConfig(
        "x",
        batch_size=8 * accumulation,
        gradient_accumulation=accumulation,
        precision=precision,
        zero_stage=stage,
    )
    groups = parameter_groups(module.parameters(), optimizer.lr, optimizer.weight_decay)
    engine = make_engine(module, groups, optimizer, trainer, connect())
    for _ in range(2):
        for number in range(accumulation):
            features = torch.randn(8, WIDTH, dtype=model_dtype(trainer), device=engine.device)
            engine.backward(engine(features).float().pow(2).mean())
            if number + 1 < accumulation:
                engine.step()
        assert torch.isfinite(update(engine, optimizer, trainer))
    return engine, before, kept


@pytest.mark.gpu
@pytest.mark.launch
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_exports_hold_frozen_weights_and_float32_ones(
    stage: int, precision: str, one_rank: None
) -> None:
    engine, before, kept = stepped(stage, precision)
    state = {name: weight.cpu() for name, weight in full_state(engine, kept).items()}
    assert {name: w.shape for name, w in state.items()} == {n: w.shape for n, w in before.items()}
    assert {w.dtype for w in state.values()} == {torch.float32}
    assert torch.equal(state["0.weight"], before["0.weight"])
    trained = state["2.weight"]
    assert not torch.equal(trained, before["2.weight"])
    assert not torch.equal(trained, trained.bfloat16().float())  # not rounded


@pytest.mark.launch
def test_zero_3_leaves_linear_layers_as_they_were(one_rank: None) -> None:
    engine, *_ = stepped(3, "fp32")
    assert nn.functional.linear is not torch._C._nn.linear
    release_engine(engine)
    assert nn.functional.linear is torch._C._nn.linear


@pytest.mark.launch
def test_gradients_of_micro_batches_are_summed_in_float32(one_rank: None) -> None:
    sums = []
    for stage, precision in ((0, "fp32"), (2, "bf16"), (3, "bf16")):
        engine, before, kept = stepped(stage, precision, accumulation=16, frozen=False)
        moved = full_state(engine, kept)["2.weight"] - before["2.weight"]
        sums.append(moved.sign())
    # AdamW's first steps have the size of the learning rate and the sign of the gradient.
    for other in sums[1:]:
        assert float((other == sums[0]).float().mean()) > 0.99


@pytest.mark.launch
def test_the_update_waits_for_nothing_and_costs_as_much_in_bf16(one_rank: None) -> None:
    optimizer, counted = OptimizerConfig(), {}
    for precision in ("fp32", "tf32", "bf16"):
        trainer = TrainerConfig("x", batch_size=8, precision=precision)
        engine, *_ = stepped(0, precision)
        engine.backward(engine(torch.randn(8, WIDTH)).mean())
        with Operations() as operations:
            update(engine, optimizer, trainer)
        assert operations.waits == 0
        assert not engine.tput_timer.initialized  # it would wait for the device twice a step
        counted[precision] = operations.kernels
    assert 0 < counted["fp32"] == counted["tf32"] == counted["bf16"] < 30


@pytest.mark.launch
def test_an_update_without_finite_gradients_changes_nothing(one_rank: None) -> None:
    optimizer, trainer = OptimizerConfig(), TrainerConfig("x", batch_size=8)
    engine, _, kept = stepped(0, "fp32")
    before = full_state(engine, kept)
    count = float(engine.optimizer.state[engine.module[2].weight]["step"])
    engine.backward(engine(torch.full((8, WIDTH), torch.nan)).mean())
    assert not torch.isfinite(update(engine, optimizer, trainer))
    after = full_state(engine, kept)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert float(engine.optimizer.state[engine.module[2].weight]["step"]) == count
    engine.backward(engine(torch.randn(8, WIDTH)).mean())
    assert torch.isfinite(update(engine, optimizer, trainer))
    assert not torch.equal(full_state(engine, kept)["2.weight"], after["2.weight"])


@pytest.mark.parametrize(("checkpointing", "sizes"), [(False, (6, 5, 7)), (True, (6,))])
def test_the_encoder_compiles_whole_into_few_graphs(
    checkpointing: bool, sizes: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    encoder = Encoder(
        EncoderConfig("tiny", dropout=0.0), DIMS, 10, activation_checkpointing=checkpointing
    )

    def losses() -> list[float]:
        torch.manual_seed(1)
        found = []
        for clips in sizes:
            masked = torch.rand(clips, 2, 10) < 0.2, torch.randn(2, encoder.width)
            for lengths, masks in ((None, ()), (torch.full((clips,), 9), ()), (None, masked)):
                streams = {name: torch.randn(clips, 10, dim) for name, dim in DIMS.items()}
                loss = torch.stack(encoder(streams, lengths, (), *masks)).pow(2).mean()
                loss.backward()
                found.append(float(loss.detach()))
        return found

    plain, graphs = losses(), CompileCounter()
    torch._dynamo.reset()
    compile_encoder(encoder, backend=graphs)
    assert losses() == pytest.approx(plain, rel=1e-5)
    # Whole, padded and masked: for the first number of clips, and for all others.
    assert graphs.frame_count == 3 * min(2, len(sizes))
