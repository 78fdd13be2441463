"""`--dry-run`: a second executor of a training's `open_task`, which writes nothing.

It checks what the run would check before its first step and prints a plan.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from avvp_dist.config import PretrainConfig, TrainerConfig
from avvp_dist.loading.loader import ClipBatch, Loader
from avvp_dist.loading.stream import ClipStream
from avvp_dist.loading.transfer import to_device
from avvp_dist.models.encoder import Encoder
from avvp_dist.runtime.launched import launched_rank
from avvp_dist.runtime.ranks import single_rank
from avvp_dist.training.checkpoint import check_same, check_unclaimed, latest_checkpoint
from avvp_dist.training.engine import check_zero, parameter_names, planned_steps
from avvp_dist.training.footprint import (
    PlannedRanks,
    StepCost,
    Weights,
    checkpoint_bytes,
    imitate_autocast,
    measure,
    memory,
)
from avvp_dist.training.precision import autocasts, model_dtype
from avvp_dist.training.task import ConfigT, OpenTask, StepInfo, Task, TrainingConfig
from avvp_dist.training.trainer import stream_of

GPU_CLIPS = 128
"""Clips of a micro-batch below which the host takes longer to launch a step of the encoder `paper`
than a GPU takes to compute it (docs/scaling.md)."""

Rows = Iterator[tuple[str, str]]
"""Rows of the table: name and value."""


def print_plan(title: str, config: ConfigT, open_task: OpenTask[ConfigT], ranks: int) -> None:
    """Print what `run_training` would do on this number of ranks; only rank 0 does it.

    Raises:
        AvvpError: as `run_training` would before its first step.
    """
    if launched_rank() != 0:
        return
    planned = PlannedRanks(0, ranks, torch.device("meta"))
    check_unclaimed(Path(config.trainer.out), config.trainer.resume)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # On the meta device weights are compared by name and shape, and have no values to fill.
        warnings.filterwarnings("ignore", "for .*meta parameter", UserWarning)
        task = open_task(config, lambda: planned, scratch=Path(scratch))
    rows = [(title, f"{ranks} ranks, {_form(config.trainer)}"), *_plan(task, config, planned)]
    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        print(f"{name:{width}}{value}")


def _plan(task: Task, config: TrainingConfig, ranks: PlannedRanks) -> Rows:
    """Check what the trainer would check, and describe what it would do."""
    trainer = config.trainer
    check_zero(config.optimizer, trainer, ranks.size)
    stream = stream_of(task, config, ranks)
    # Raises if the cache cannot hold the shards that are needed at once.
    Loader(task.data, stream, config.data, torch.device("cpu"))
    _check_writable(Path(trainer.out))
    start = _start(task, config, stream, ranks)
    weights = Weights.of(task.module)
    task.module.to(model_dtype(trainer))
    if autocasts(trainer):
        imitate_autocast(task.module)
    micro = trainer.batch_size // (ranks.size * trainer.gradient_accumulation)
    steps = planned_steps(trainer, stream.steps_per_epoch)
    early = ""
    if trainer.patience:
        early = f", fewer after {trainer.patience} validations without a better score"
    yield from _data_rows(task, stream, ranks.size)
    yield from task.plan()
    yield (
        "steps",
        f"{stream.steps_per_epoch:,} an epoch, {steps:,} in all{early}, "
        f"{round(config.optimizer.warmup * steps):,} of them warm up",
    )
    yield "start", start
    yield from _batch_rows(task, trainer, ranks.size, micro)
    if isinstance(config, PretrainConfig):
        yield from gpu_rows(trainer, ranks.size, micro)
    yield "parameters", f"{weights.trained:,} trained, {weights.frozen:,} frozen"
    yield from _cost_rows(weights, trainer, ranks.size, _costs(task, micro), stream)
    yield "checkpoints", _checkpoints(weights, trainer)


def _costs(task: Task, clips: int) -> dict[bool, StepCost]:
    """Cost of a micro-batch without and with activation checkpointing."""
    costs = {}
    for checkpointing in (False, True):
        for layer in task.module.modules():
            if isinstance(layer, Encoder):
                layer.activation_checkpointing = checkpointing
        costs[checkpointing] = measure(task.module, lambda: planned_batch(task, clips))
    return costs


def planned_batch(task: Task, clips: int) -> object:
    """A micro-batch on the meta device."""
    numbers = np.resize(np.concatenate([pool.clips for pool in task.pools]), clips)
    layout = task.data.layout
    dtype = getattr(torch, layout.dtype)
    buffer = torch.empty(clips, layout.width, dtype=dtype)  # no page of it is touched
    read = ClipBatch(numbers, np.arange(clips), buffer, layout, clips)
    return to_device(task.make_batch(read, StepInfo(0, 0, 0.0)), task.ranks.device)


def _start(task: Task, config: TrainingConfig, stream: ClipStream, ranks: PlannedRanks) -> str:
    """Where training would begin; no checkpoint is set aside and none is loaded."""
    if config.trainer.resume == "never":
        return "from step 0"
    checkpoint = latest_checkpoint(Path(config.trainer.out), single_rank("cpu"), set_aside=False)
    if checkpoint is None:
        return "from step 0: there is no checkpoint yet"
    names = parameter_names(task.module, task.parameter_groups())
    check_same(checkpoint.state, stream, task, names)
    start = f"from {checkpoint.folder.name}"
    if 0 < config.trainer.patience <= checkpoint.state.stale:
        start += ", where it has stopped early"
    if not checkpoint.fits(config.trainer, ranks):
        start += (
            f", {checkpoint.world_size} ranks, ZeRO {checkpoint.zero_stage}, "
            f"{checkpoint.precision} turn into {ranks.size} ranks, {_form(config.trainer)}"
        )
    return start


def _form(trainer: TrainerConfig) -> str:
    return f"ZeRO {trainer.zero_stage}, {trainer.precision}"


def _data_rows(task: Task, stream: ClipStream, ranks: int) -> Rows:
    for part in task.data.sets:
        stored = sum(shard.bytes for shard in part.shards)
        excluded = int(part.excluded.sum())
        yield (
            "shard set",
            f"{part.name}: {len(part):,} clips, {excluded:,} of them excluded, "
            f"{len(part.shards):,} shards, {_size(stored)}",
        )
    one = task.data.layout.row_bytes
    trained = sum(len(pool.clips) for pool in task.pools)
    yield "trained on", f"{trained:,} clips, {stream.clips_per_epoch:,} in an epoch"
    yield (
        "read",
        f"{_size(stream.clips_per_epoch * one / ranks)} an epoch on each rank, {_size(one)} a clip",
    )


def _batch_rows(task: Task, trainer: TrainerConfig, ranks: int, micro: int) -> Rows:
    yield (
        "batch",
        f"{trainer.batch_size:,} clips = {ranks:,} ranks x {trainer.gradient_accumulation} "
        f"micro-batches x {micro:,}",
    )
    shapes = (f"{n} [{micro}, {task.data.snippets}, {d}]" for n, d in task.data.dims.items())
    yield "micro-batch", ", ".join(shapes)


def gpu_rows(trainer: TrainerConfig, ranks: int, micro: int) -> Rows:
    """Say what to set if the ranks are GPUs, which this machine need not have."""
    if micro >= GPU_CLIPS:
        return
    one = trainer.batch_size // ranks
    fewer = [n for n in range(1, one // GPU_CLIPS + 1) if one % n == 0]
    if fewer:
        remedy = f"set trainer.gradient_accumulation={fewer[-1]}"
    else:
        batch = GPU_CLIPS * ranks * trainer.gradient_accumulation
        remedy = f"set trainer.batch_size={batch} or more (see --config pretrain/gpu)"
    remedy += ", or take fewer ranks" if ranks > 1 else ""
    yield "if ranks are GPUs", f"{micro:,} clips at once leave them idle: {remedy}"


def _cost_rows(
    weights: Weights,
    trainer: TrainerConfig,
    ranks: int,
    costs: dict[bool, StepCost],
    stream: ClipStream,
) -> Rows:
    parts = memory(weights, trainer, ranks)
    for name, size in parts.items():
        yield f"memory: {name}", _size(size)
    kept, again = (
        costs[activation_checkpointing].activations for activation_checkpointing in (False, True)
    )
    both = f"{_size(kept)}, with trainer.activation_checkpointing=true {_size(again)}"
    yield "memory: activations", both
    total = sum(parts.values()) + costs[trainer.activation_checkpointing].activations
    yield "memory on each rank", f"{_size(total)} at most, beside what torch itself takes"
    step = costs[False].flops * trainer.gradient_accumulation * ranks
    yield "FLOP", f"{step:.3g} a step, {step * stream.steps_per_epoch:.3g} an epoch, all ranks"


def _checkpoints(weights: Weights, trainer: TrainerConfig) -> str:
    one = checkpoint_bytes(weights, trainer)
    free = shutil.disk_usage(_existing(Path(trainer.out))).free
    maximum = trainer.keep + 2  # the best one, and the new one before an old one goes
    return f"{_size(one)} each, {maximum} at most: {_size(maximum * one)}; {_size(free)} are free"


def _check_writable(out: Path) -> None:
    """Raise the `OSError` that making `out` would."""
    above = _existing(out)
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
    if not os.access(above, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(out))


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _size(count: float) -> str:
    """A number of bytes, to three figures."""
    power = min(4, int(math.log(count, 1024))) if count >= 1 else 0
    return f"{count / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
