"""The DeepSpeed engine: config, optimiser, learning rate, update, and the full weights."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from avvp_dist.config import OptimizerConfig, TrainerConfig
from avvp_dist.config.files import read_config
from avvp_dist.errors import ConfigError, first_line
from avvp_dist.models.encoder import EncoderLayer
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.training.footprint import BUCKET

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

    fused = ranks.device.type in ("cpu", "cuda")
    adam = torch.optim.AdamW([{**vars(group)} for group in groups], lr=optimizer.lr, fused=fused)
    # Beside layers in bf16, TF32 is precise enough for what is compared in float32.
    torch.set_float32_matmul_precision("high" if trainer.precision == "bf16" else "highest")
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
        # Without ZeRO and bf16 DeepSpeed clips but hides the norm: `update` does both.
        "gradient_clipping": 0.0 if clips_itself(trainer) else optimizer.max_grad_norm,
        "bf16": {"enabled": trainer.precision == "bf16", "check_grad_overflow": True},
        "fp16": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        **extra,
        "zero_optimization": zero,
    }


def compile_layers(module: nn.Module) -> None:
    """Compile every encoder layer; the code around the layers would break graphs."""
    for layer in module.modules():
        if isinstance(layer, EncoderLayer):
            layer.compile()


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


def clips_itself(trainer: TrainerConfig) -> bool:
    """Whether `update` clips and checks gradients itself, instead of DeepSpeed."""
    return trainer.zero_stage == 0 and trainer.precision == "fp32"


def update(
    engine: Engine, optimizer: OptimizerConfig, trainer: TrainerConfig
) -> tuple[float, bool]:
    """One optimiser step over the accumulated gradients; none if a gradient is not finite.

    Returns:
        Norm of the gradients before clipping, and whether the step was made; equal on all ranks.
    """
    if not clips_itself(trainer):
        engine.step()
        norm = engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm), engine.was_step_applied()
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    finite = bool(torch.isfinite(norm))
    if not finite:
        engine.optimizer.zero_grad(set_to_none=True)  # AdamW skips parameters without a gradient
    elif optimizer.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(
            engine.module.parameters(), optimizer.max_grad_norm, norm
        )
    engine.step()
    return float(norm), finite


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


def model_dtype(trainer: TrainerConfig) -> torch.dtype:
    """Data type of weights and activations."""
    return torch.bfloat16 if trainer.precision == "bf16" else torch.float32


def lr_factor(optimizer: OptimizerConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """Learning rate of a step relative to its peak: linear warm-up, then the schedule."""
    warmup = round(optimizer.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if optimizer.schedule == "cosine":
        return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
    if optimizer.schedule == "step":
        return optimizer.decay ** (step // steps_per_epoch // optimizer.decay_every)
    return 1.0


def full_state(engine: Engine) -> dict[str, Tensor]:
    """The whole state dict of the module in float32, under any ZeRO stage; a collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    state = {name: t.detach().float() for name, t in engine.module.named_buffers() if t.ndim}
    counters = {name: t.detach() for name, t in engine.module.named_buffers() if not t.ndim}
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        state[name] = (parameter.detach() if full is None else full).float().clone()
    return state | counters


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
