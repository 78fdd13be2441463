"""The DeepSpeed engine: config, optimiser, learning rate, update, and the full weights."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from avvp_dist.config import OptimizerConfig, TrainerConfig
from avvp_dist.config.files import read_config
from avvp_dist.errors import ConfigError, first_line
from avvp_dist.models.encoder import Encoder
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.training.footprint import BUCKET
from avvp_dist.training.precision import set_product_precision, stores_bf16

_EXTRA = ("zero_optimization", "communication_data_type", "comms_logger", "flops_profiler")
"""Top-level DeepSpeed keys that `trainer.deepspeed` may add. Results depend on none of them."""
_OURS = {
    "train_batch_size": "trainer.batch_size",
    "train_micro_batch_size_per_gpu": "trainer.gradient_accumulation",
    "gradient_accumulation_steps": "trainer.gradient_accumulation",
    "gradient_clipping": "optimizer.max_grad_norm",
    "bf16": "trainer.precision",
    "fp16": "trainer.precision",
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
}


_LINEAR = nn.functional.linear
"""The function that ZeRO stage 3 replaces, for the rest of the process, by one with other bits."""
_GRAPHS = 2 * 3 * 3
"""Maximum number of graphs of a compiled encoder."""

Engine: TypeAlias = Any
"""A `deepspeed.DeepSpeedEngine`, which is untyped."""


@dataclass(frozen=True)
class ParameterGroup:
    """Trainable parameters with a learning rate and a weight decay of their own."""

    params: list[nn.Parameter]
    lr: float
    """Peak learning rate."""
    weight_decay: float


def make_engine(
    module: nn.Module,
    groups: Sequence[ParameterGroup],
    optimizer: OptimizerConfig,
    trainer: TrainerConfig,
    ranks: Ranks,
) -> Engine:
    """A DeepSpeed engine around `module`, with AdamW over parameter `groups`.

    Raises:
        ConfigError: if DeepSpeed refuses the keys of `trainer.deepspeed`.
    """
    # Imported late: it looks for an accelerator at once, and `connect` tells it about the CPU.
    import deepspeed

    adam = torch.optim.AdamW([{**vars(group)} for group in groups], lr=optimizer.lr, fused=True)
    set_product_precision(trainer)
    nn.functional.linear = _LINEAR
    config = engine_config(optimizer, trainer, ranks.size)
    with _naming_the_key(trainer):
        engine, *_ = deepspeed.initialize(model=module, optimizer=adam, config=config)
    if ranks.size == 1 and trainer.zero_stage == 0:
        # One rank would flatten all gradients, reduce them with no peer and copy them back.
        engine.enable_backward_allreduce = False
    return engine


def engine_config(
    optimizer: OptimizerConfig, trainer: TrainerConfig, world_size: int
) -> dict[str, object]:
    """The DeepSpeed config, with every key that results depend on: defaults differ by version.

    Raises:
        ConfigError: for a key of `trainer.deepspeed` that is unknown or set elsewhere. DeepSpeed
            itself accepts any top-level key in silence.
    """
    extra = _extra_keys(trainer.deepspeed)
    zero: dict[str, object] = {
        "stage": trainer.zero_stage,
        "overlap_comm": trainer.zero_stage > 0,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        "round_robin_gradients": False,
        "ignore_unused_parameters": True,
        "compute_grad_norm": True,
        **extra.pop("zero_optimization", {}),
    }
    return {
        "train_batch_size": trainer.batch_size,
        "train_micro_batch_size_per_gpu": trainer.batch_size
        // (world_size * trainer.gradient_accumulation),
        "gradient_accumulation_steps": trainer.gradient_accumulation,
        # Without ZeRO DeepSpeed clips but hides the norm: `update` does both.
        "gradient_clipping": optimizer.max_grad_norm if trainer.zero_stage else 0.0,
        "bf16": {"enabled": stores_bf16(trainer), "check_grad_overflow": True},
        "fp16": {"enabled": False},
        # DeepSpeed sums the gradients of several micro-batches in bf16 by default.
        "data_types": {"grad_accum_dtype": "fp32" if trainer.gradient_accumulation > 1 else None},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        # It would wait for the device twice a step.
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
        **extra,
        "zero_optimization": zero,
    }


def compile_encoder(module: nn.Module, backend: str | Callable[..., object] = "inductor") -> None:
    """Compile the encoder as one graph without a break; what is around it stays as it is.

    There is a graph for whole clips and one for padded ones, in training, in training with masked
    snippets and in validation, and of each at most one for the first number of clips, for a single
    clip, and for all other numbers.
    """
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, _GRAPHS)
    for part in module.modules():
        if isinstance(part, Encoder):
            part.compile(fullgraph=True, backend=backend)


def check_zero(optimizer: OptimizerConfig, trainer: TrainerConfig, world_size: int) -> None:
    """Raise the `ConfigError` that `make_engine` would raise for the DeepSpeed config."""
    config = engine_config(optimizer, trainer, world_size)
    if trainer.deepspeed:  # our own values are valid, and the import takes seconds
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        with _naming_the_key(trainer):
            DeepSpeedZeroConfig.model_validate(config["zero_optimization"])


@contextmanager
def _naming_the_key(trainer: TrainerConfig) -> Iterator[None]:
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ConfigError(
            f"trainer.deepspeed={trainer.deepspeed}: zero_optimization.{where}: "
            f"{error.errors()[0]['msg']}"
        ) from None


def update(engine: Engine, optimizer: OptimizerConfig, trainer: TrainerConfig) -> Tensor:
    """One optimiser step over the accumulated gradients; none if a gradient is not finite.

    Without ZeRO nothing here waits for the device: AdamW itself looks at a flag beside the
    gradients and leaves out the step.

    Returns:
        Norm of the gradients before clipping, a float32 scalar that is equal on all ranks and not
        finite if the step was left out.
    """
    if trainer.zero_stage:
        engine.step()
        norm = engine.get_global_grad_norm() if engine.was_step_applied() else math.nan
        return torch.as_tensor(norm, dtype=torch.float32)
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    total = torch.nn.utils.get_total_norm(gradients)
    # The names by which torch's gradient scaler tells fused optimisers the same.
    engine.optimizer.grad_scale = None
    engine.optimizer.found_inf = (~torch.isfinite(total)).float()
    if optimizer.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(
            engine.module.parameters(), optimizer.max_grad_norm, total
        )
    engine.step()
    return total


def parameter_groups(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> list[ParameterGroup]:
    """Trainable parameters in up to two groups: matrices decay, biases and norms do not."""
    trainable = [p for p in parameters if p.requires_grad]
    groups = [
        ParameterGroup([p for p in trainable if p.ndim > 1], lr, weight_decay),
        ParameterGroup([p for p in trainable if p.ndim <= 1], lr, 0.0),
    ]
    return [group for group in groups if group.params]


def parameter_names(module: nn.Module, groups: Sequence[ParameterGroup]) -> list[str]:
    """Names of the trained parameters, in the order of the optimiser's groups."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [names[parameter] for group in groups for parameter in group.params]


def planned_steps(trainer: TrainerConfig, steps_per_epoch: int) -> int:
    """Optimiser steps of the whole training: to the end of the epochs or `max_steps`."""
    return min(filter(None, (trainer.epochs * steps_per_epoch, trainer.max_steps)))


def lr_factor(optimizer: OptimizerConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """Learning rate of a step relative to its peak: linear warm-up, then the schedule.

    Args:
        steps: planned steps. A training that stops early has had the schedule of the whole.
    """
    warmup = round(optimizer.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if optimizer.schedule == "cosine":
        return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
    if optimizer.schedule == "step":
        unit = steps_per_epoch if optimizer.decay_unit == "epochs" else 1
        return optimizer.decay ** (step // (unit * optimizer.decay_every))
    return 1.0


def frozen_weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights that are not trained, on the CPU, before an engine takes the module.

    The engine rounds them under bf16 and splits them among the ranks at ZeRO stage 3.
    """
    return {
        name: p.detach().cpu().clone()
        for name, p in module.named_parameters()
        if not p.requires_grad
    }


def full_state(engine: Engine, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole state dict of the module in float32, under any ZeRO stage; a collective.

    Args:
        frozen: `frozen_weights` of the module.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    state = {name: t.detach().float() for name, t in engine.module.named_buffers() if t.ndim}
    counters = {name: t.detach() for name, t in engine.module.named_buffers() if not t.ndim}
    for name, parameter in engine.module.named_parameters():
        if name not in frozen:
            full = safe_get_full_fp32_param(parameter)
            state[name] = (parameter.detach() if full is None else full).float().clone()
    return state | counters | dict(frozen)


def release_engine(engine: Engine) -> None:
    """Give up an engine and what it changed, so that later work in this process has neither."""
    engine.destroy()  # ZeRO's hooks in autograd refer to it where Python cannot see it
    engine.__dict__.clear()  # its own functions refer to it too
    torch.set_float32_matmul_precision("highest")
    nn.functional.linear = _LINEAR


def _extra_keys(path: str) -> dict[str, Any]:
    """Top-level keys of the file `trainer.deepspeed`."""
    if not path:
        return {}
    try:
        extra = dict(json.loads(read_config(path, ".json")))
    except (OSError, ValueError, TypeError, ConfigError) as error:
        raise ConfigError(f"trainer.deepspeed={path}: {first_line(error)}") from None
    issues = []
    for key in extra:
        if key in _OURS:
            issues.append(f"{key} follows from {_OURS[key]}")
        elif key not in _EXTRA:
            near = difflib.get_close_matches(key, _EXTRA, 1, 0.0)[0]
            issues.append(f"unknown key {key}, did you mean {near}?")
    if "stage" in extra.get("zero_optimization", {}):
        issues.append("zero_optimization.stage follows from trainer.zero_stage")
    if issues:
        raise ConfigError(f"trainer.deepspeed={path}: {'; '.join(issues)}")
    return extra
