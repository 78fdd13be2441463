"""Conversion of checkpoints between numbers of ranks, ZeRO stages and precisions.

The universal form in between has a folder for each parameter, with its float32 value and its two
moments.
"""

from __future__ import annotations

import contextlib
import io
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from avvp_dist.config import TrainerConfig
from avvp_dist.errors import CheckpointError
from avvp_dist.training.engine import Engine

Write = Callable[[Tensor, str, Tensor], None]
"""Writes the whole tensor of a parameter and a key, `fp32` or a moment."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter."""
_STATES = ("fp32", *MOMENTS)


def convert_to_universal(saved: Path, out: Path, zero_stage: int, parameters: list[str]) -> None:
    """Write the universal form of a DeepSpeed checkpoint; called by one process alone.

    Args:
        saved: folder of one tag, as DeepSpeed wrote it.
        parameters: names of the trained parameters, in the order of the optimiser's groups.
    """
    if zero_stage:
        from deepspeed.checkpoint.ds_to_universal import main

        options = Namespace(
            input_folder=str(saved),
            output_folder=str(out),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
        quiet = io.StringIO()
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            main(options)
        return
    # DeepSpeed has no universal form of a training without ZeRO, whose one file holds everything.
    (file,) = saved.glob("mp_rank_*_model_states.pt")
    # The file holds pickled objects of DeepSpeed; its SHA-256 has been checked.
    held = torch.load(file, map_location="cpu", weights_only=False)
    optimizer = held["optimizer"]
    masters = dict(held["module"])
    if "fp32_groups" in optimizer:  # bf16: the weights of the module are rounded
        values = [tensor for group in optimizer["fp32_groups"] for tensor in group]
        masters.update(zip(parameters, values, strict=True))
        optimizer = optimizer["optimizer_state_dict"]
    for number, name in enumerate(parameters):
        folder = out / "zero" / name
        folder.mkdir(parents=True)
        moments = optimizer["state"][number]
        states = {"fp32": masters[name], **{key: moments[key] for key in MOMENTS}}
        for key, tensor in states.items():
            torch.save({"param": tensor.detach().float()}, folder / f"{key}.pt")


def restore(
    engine: Engine, universal: Path, buffers: dict[str, Tensor], steps: int, trainer: TrainerConfig
) -> None:
    """Load the universal form into a fresh engine of any ZeRO stage; called by every rank.

    Args:
        buffers: the module's buffers by name.
        steps: number of optimiser steps that were made.

    Raises:
        CheckpointError: if a trained parameter is missing or has another size.
    """
    for name, buffer in engine.module.named_buffers():
        buffer.copy_(buffers[name])
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    if trainer.zero_stage == 3:
        engine.optimizer.checkpoint_event_prologue()
    for flat in _states_of(engine, trainer):
        # Zero moments, as the first step would make them.
        zeros = {key: torch.zeros_like(flat) for key in MOMENTS}
        count = torch.tensor(float(steps), device=flat.device if _on_device(inner) else "cpu")
        inner.state[flat] = {"step": count, **zeros}
    write = _writer(engine, trainer)
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            for key, tensor in _read(universal / "zero" / name):
                if tensor.numel() != getattr(parameter, "ds_numel", parameter.numel()):
                    raise CheckpointError(f"{name} has {tensor.numel()} numbers in {universal}")
                write(parameter, key, tensor)
    if trainer.zero_stage in (1, 2):
        engine.optimizer.update_lp_params()
    elif trainer.zero_stage == 3:
        for number in range(len(engine.optimizer.fp32_partitioned_groups_flat)):
            engine.optimizer._reassign_or_swap_out_partitioned_parameters(number)
        engine.optimizer.checkpoint_event_epilogue()


def _read(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for key in _STATES:
        path = folder / f"{key}.pt"
        if not path.is_file():
            raise CheckpointError(f"{folder.name} is not among the saved parameters")
        held = torch.load(path, map_location="cpu", weights_only=True)
        yield key, held["param"] if isinstance(held, dict) else held  # bare from ZeRO 3


def _states_of(engine: Engine, trainer: TrainerConfig) -> list[Tensor]:
    """Tensors for which the optimiser keeps states: parameters, or flat parts of them."""
    if trainer.zero_stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return [tensor for group in inner.param_groups for tensor in group["params"]]


def _on_device(adam: torch.optim.Optimizer) -> bool:
    return any(group.get("fused") or group.get("capturable") for group in adam.param_groups)


def _writer(engine: Engine, trainer: TrainerConfig) -> Write:
    """A function that writes a whole tensor to where the ZeRO stage keeps it."""
    if trainer.zero_stage == 0:
        return _plain_writer(engine)
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if trainer.zero_stage in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()

    def write(parameter: Tensor, key: str, tensor: Tensor) -> None:
        shape = getattr(parameter, "ds_shape", parameter.shape)
        tensor = tensor.reshape(shape).to(engine.device)
        if key == "fp32":
            safe_set_full_fp32_param(parameter, tensor)
        else:
            safe_set_full_optimizer_state(parameter, tensor, key)

    return write


def _plain_writer(engine: Engine) -> Write:
    masters: dict[Tensor, Tensor] = {}
    if hasattr(engine.optimizer, "fp32_groups"):
        pairs = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)
        for low, high in pairs:
            masters.update(zip(low, high, strict=True))
    state = getattr(engine.optimizer, "optimizer", engine.optimizer).state

    @torch.no_grad()
    def write(parameter: Tensor, key: str, tensor: Tensor) -> None:
        master = masters.get(parameter, parameter)
        tensor = tensor.reshape(parameter.shape)
        if key == "fp32":
            parameter.copy_(tensor)
            master.copy_(tensor)
        else:
            state[master][key].copy_(tensor)

    return write
