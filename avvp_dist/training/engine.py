"""The DeepSpeed engine: its config, optimiser, schedule, update, and full weights out of it."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from avvp_dist.config import OptimizerConfig, TrainerConfig
from avvp_dist.config.files import read_config
from avvp_dist.errors import ConfigError, first_line
from avvp_dist.models.encoder import EncoderLayer
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.training.footprint import BUCKET

_EXTRA = ("zero_optimization", "communication_data_type", "comms_logger", "flops_profiler")
"""DeepSpeed's top-level keys that a file may add: none that the results depend on."""
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


def make_engine(
    module: nn.Module,
    groups: list[dict[str, Any]],
    optimizer: OptimizerConfig,
    trainer: TrainerConfig,
    ranks: Ranks,
) -> Any:
    """A DeepSpeed engine around `module`, with AdamW over parameter `groups`.

    Raises:
        ConfigError: for a `trainer.deepspeed` that DeepSpeed cannot work by.
    """
    # Not at the top: it looks for an accelerator at once, and `connect` tells it of none first.
    import deepspeed

    for layer in module.modules():
        if hasattr(layer, "activation_checkpointing"):
            layer.activation_checkpointing = trainer.activation_checkpointing  # type: ignore[assignment]
    adam = torch.optim.AdamW(groups, lr=optimizer.lr, fused=ranks.device.type in ("cpu", "cuda"))
    # Beside layers in bf16, what is compared in float32 can do with TF32, where there is any.
    torch.set_float32_matmul_precision("high" if trainer.precision == "bf16" else "highest")
    config = engine_config(optimizer, trainer, ranks.size)
    with _naming_the_key(trainer):
        engine, *_ = deepspeed.initialize(model=module, optimizer=adam, config=config)
    if ranks.size == 1 and trainer.zero_stage == 0:
        # It would flatten all gradients, reduce them with nobody and copy them back.
        engine.enable_backward_allreduce = False
    return engine


def engine_config(
    optimizer: OptimizerConfig, trainer: TrainerConfig, world_size: int
) -> dict[str, Any]:
    """Every DeepSpeed key that results depend on, since defaults changed between versions.

    Raises:
        ConfigError: for a key of `trainer.deepspeed` that is unknown or set elsewhere. DeepSpeed
            itself takes any top-level key in silence.
    """
    extra = _extra_keys(trainer.deepspeed)
    zero = {
        "stage": trainer.zero_stage,
        "overlap_comm": trainer.zero_stage > 0,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        "round_robin_gradients": False,
        "ignore_unused_parameters": True,
        "compute_grad_norm": True,
    }
    return {
        "train_batch_size": trainer.batch_size,
        "train_micro_batch_size_per_gpu": trainer.batch_size
        // (world_size * trainer.gradient_accumulation),
        "gradient_accumulation_steps": trainer.gradient_accumulation,
        # Without ZeRO and bf16 DeepSpeed clips but does not say the norm: `update` does both.
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
        "zero_optimization": {**zero, **extra.get("zero_optimization", {})},
    }


def compile_layers(module: nn.Module) -> None:
    """torch.compile for every encoder layer, once for all; what is around them breaks graphs."""
    for layer in module.modules():
        if isinstance(layer, EncoderLayer):
            layer.compile()


def check_zero(config: dict[str, Any], trainer: TrainerConfig) -> None:
    """Raise the `ConfigError` that an engine of this `config` would, without one."""
    if trainer.deepspeed:  # the values written out here are right, and the import takes seconds
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        with _naming_the_key(trainer):
            DeepSpeedZeroConfig(**config["zero_optimization"])


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
    """Whether the engine leaves clipping and the check for finite gradients to `update`."""
    return trainer.zero_stage == 0 and trainer.precision == "fp32"


def update(engine: Any, optimizer: OptimizerConfig, trainer: TrainerConfig) -> tuple[float, bool]:
    """One optimiser step over what was accumulated, or none if a gradient is not finite.

    Returns:
        The gradients' norm before clipping, and whether the step was made; the same on all ranks.
    """
    if not clips_itself(trainer):
        engine.step()
        norm = engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm), engine.was_step_applied()
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    finite = bool(torch.isfinite(norm))
    if not finite:
        engine.optimizer.zero_grad(set_to_none=True)  # AdamW passes over what has no gradient
    elif optimizer.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(
            engine.module.parameters(), optimizer.max_grad_norm, norm
        )
    engine.step()
    return float(norm), finite


def parameter_groups(
    named: list[tuple[str, nn.Parameter]], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay, biases and norms do not."""
    trainable = [p for _, p in named if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def parameter_names(module: nn.Module, groups: list[dict[str, Any]]) -> list[str]:
    """Names of the trained parameters in the order of the optimiser's groups."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [names[parameter] for group in groups for parameter in group["params"]]


def lr_factor(optimizer: OptimizerConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """Learning rate of `step` relative to its peak: linear warm-up, then the schedule."""
    warmup = round(optimizer.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if optimizer.schedule == "cosine":
        return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
    if optimizer.schedule == "step":
        return optimizer.decay ** (step // steps_per_epoch // optimizer.decay_every)
    return 1.0


def full_state(engine: Any) -> dict[str, Tensor]:
    """The module's whole state dict in float32, whatever the ZeRO stage; all ranks must call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    state = {name: t.detach().float() for name, t in engine.module.named_buffers() if t.ndim}
    counters = {name: t.detach() for name, t in engine.module.named_buffers() if not t.ndim}
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        state[name] = (parameter.detach() if full is None else full).float().clone()
    return state | counters


def _extra_keys(path: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        extra = json.loads(read_config(path, ".json"))
    except (OSError, ValueError, ConfigError) as error:
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
    return dict(extra)
