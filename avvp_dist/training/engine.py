"""The DeepSpeed engine: its config, optimiser, schedule, and full weights out of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from avvp_dist.config import Optimizer, TrainerSection
from avvp_dist.training.ranks import Ranks


def make_engine(
    module: nn.Module,
    groups: list[dict[str, Any]],
    optimizer: Optimizer,
    trainer: TrainerSection,
    ranks: Ranks,
) -> Any:
    """A DeepSpeed engine around `module`, with AdamW over parameter `groups`."""
    # Not at the top: it looks for an accelerator at once, and `connect` tells it of none first.
    import deepspeed

    adam = torch.optim.AdamW(groups, lr=optimizer.lr, fused=ranks.device.type in ("cpu", "cuda"))
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=adam, config=engine_config(optimizer, trainer, ranks.size)
    )
    if ranks.size == 1 and trainer.zero_stage == 0:
        # It would flatten all gradients, reduce them with nobody and copy them back.
        engine.enable_backward_allreduce = False
    return engine


def engine_config(optimizer: Optimizer, trainer: TrainerSection, world_size: int) -> dict[str, Any]:
    """Every DeepSpeed key that results depend on, since defaults changed between versions."""
    return {
        "train_batch_size": trainer.batch_size,
        "train_micro_batch_size_per_gpu": trainer.batch_size // (world_size * trainer.accumulate),
        "gradient_accumulation_steps": trainer.accumulate,
        "gradient_clipping": optimizer.clip,
        "bf16": {"enabled": trainer.precision == "bf16"},
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": trainer.zero_stage},
        "zero_allow_untested_optimizer": True,
        "prescale_gradients": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


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


def lr_factor(optimizer: Optimizer, step: int, steps: int, steps_per_epoch: int) -> float:
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
