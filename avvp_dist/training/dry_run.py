"""`--dry-run`: what a training would do, checked as it would check it, and nothing written."""

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

from avvp_dist.config import SIZES, FinetuneConfig, PretrainConfig, TrainerConfig
from avvp_dist.loading.loader import ClipBatch, Loader
from avvp_dist.loading.stream import ClipStream
from avvp_dist.runtime.ranks import single_rank
from avvp_dist.tasks import finetuning, pretraining
from avvp_dist.training.engine import check_zero, engine_config, parameter_names
from avvp_dist.training.footprint import (
    PlannedRanks,
    Step,
    Weights,
    checkpoint_bytes,
    measure,
    memory,
)
from avvp_dist.training.trainer import (
    Batch,
    Task,
    check_same,
    latest_checkpoint,
    stream_of,
    total_steps,
)

Rows = Iterator[tuple[str, str]]
"""Of the table: what, and how much."""
_META = torch.device("meta")


def plan_pretraining(config: PretrainConfig, ranks: int) -> None:
    """Print what `pretrain` would do on so many ranks; on ranks other than 0 do nothing.

    Raises:
        AvvpError: that `pretrain` would raise before its first step.
    """
    if not _first():
        return
    data, groundings, contamination = pretraining.open_data(config)
    planned = PlannedRanks(0, ranks, _META)
    with _META:
        task = pretraining.PretrainingTask(config, data, groundings, planned)
    layers, width, *_ = SIZES[config.encoder.size]
    facts = [
        ("held out", f"{len(task.heldout):,} clips are validated on"),
        ("encoder", f"{config.encoder.size}, {layers} layers x {width}"),
    ]
    if contamination:
        facts.append(("contaminated", f"{contamination['contaminated']} clips"))
    if config.objective.other_clips:
        facts.append(("negatives", _negatives(config, data.snippets, ranks)))
    _print("pretraining", task, config, planned, facts)


def plan_finetuning(config: FinetuneConfig, ranks: int) -> None:
    """Print what `finetune` would do on so many ranks; on ranks other than 0 do nothing.

    Raises:
        AvvpError: that `finetune` would raise before its first step.
    """
    if not _first():
        return
    data, val, annotations = finetuning.open_data(config)
    # On the meta device weights are compared by name and shape, and not filled at random before.
    with tempfile.TemporaryDirectory() as scratch, _META, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "for .*meta parameter", UserWarning)
        found = finetuning.find_encoder(config, data.sets[0], Path(scratch))
        encoder, pretrained_encoder = finetuning.pretrained(config, data.sets[0], found)
    task = finetuning.ParsingTask(config, data, val, annotations, encoder, pretrained_encoder)
    task.module.to(_META)
    tuned = "tuned" if config.pretrained.tune else "frozen"
    facts = [
        ("held out", f"{len(task.val_clips):,} clips are validated on"),
        ("parser", f"width {config.parser.width}, {len(annotations.classes)} classes"),
        ("encoder", f"{pretrained_encoder['version']}, {tuned}" if pretrained_encoder else "none"),
    ]
    _print("fine-tuning", task, config, PlannedRanks(0, ranks, _META), facts)


def _first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _print(
    stage: str,
    task: Task,
    config: PretrainConfig | FinetuneConfig,
    ranks: PlannedRanks,
    facts: list[tuple[str, str]],
) -> None:
    """Check what the trainer would, and print the table."""
    trainer = config.trainer
    check_zero(engine_config(config.optimizer, trainer, ranks.size), trainer)
    stream = stream_of(task, trainer, ranks)
    Loader(task.data, stream, task.loading, torch.device("cpu"))  # can the cache hold the shards?
    _check_writable(Path(trainer.out))
    start = _start(task, trainer, stream, ranks)
    weights = Weights.of(task.module)
    dtype = torch.bfloat16 if trainer.precision == "bf16" else torch.float32
    task.module.to(dtype)
    micro = trainer.batch_size // (ranks.size * trainer.gradient_accumulation)
    steps, warmup = total_steps(stream, trainer), config.optimizer.warmup
    costs = {}
    for activation_checkpointing in (False, True):
        for layer in task.module.modules():
            if hasattr(layer, "activation_checkpointing"):
                layer.activation_checkpointing = activation_checkpointing  # type: ignore[assignment]
        costs[activation_checkpointing] = measure(task.module, lambda: _batch(task, micro, dtype))
    rows = [
        (stage, f"{ranks.size} ranks, ZeRO {trainer.zero_stage}, {trainer.precision}"),
        *_data_rows(task, stream, ranks.size),
        facts[0],
        ("steps", f"{stream.steps_per_epoch:,} an epoch, {steps:,} in all, "
                  f"{round(warmup * steps):,} of them warm up"),
        ("start", start),
        *_batch_rows(task, trainer, ranks.size, micro),
        *facts[1:],
        ("parameters", f"{weights.trained:,} trained, {weights.frozen:,} frozen"),
        *_cost_rows(weights, trainer, ranks.size, costs, stream),
        ("checkpoints", _checkpoints(weights, trainer)),
    ]  # fmt: skip
    width = max(len(name) for name, _ in rows) + 2
    for name, said in rows:
        print(f"{name:{width}}{said}")


def _batch(task: Task, clips: int, dtype: torch.dtype) -> Batch:
    """A micro-batch of whole clips, whose tensors are nowhere."""
    some = np.resize(np.concatenate([pool.clips for pool in task.pools]), clips)
    buffer = torch.empty(clips, task.data.layout.width, dtype=torch.float16, device=_META)
    batch = task.batch(ClipBatch(some, buffer, task.data.layout, clips), _META, dtype)
    if "lengths" in batch:  # a number that decides whether there is a mask
        batch["lengths"] = torch.full((clips,), task.data.snippets)
    return {**batch, "step": 0, "epoch": 0, "progress": 0.0}


def _start(task: Task, trainer: TrainerConfig, stream: ClipStream, ranks: PlannedRanks) -> str:
    """Where training would begin; nothing is set aside and nothing loaded."""
    if trainer.resume == "never":
        return "from step 0"
    found = latest_checkpoint(Path(trainer.out), single_rank(), set_aside=False)
    if found is None:
        return "from step 0: there is no checkpoint yet"
    check_same(found.state, stream, task, parameter_names(task.module, task.groups()))
    said = f"from {found.folder.name}"
    if not found.fits(trainer, ranks):
        said += (
            f", {found.world_size} ranks, ZeRO {found.zero_stage}, {found.precision} turn into "
            f"{ranks.size} ranks, ZeRO {trainer.zero_stage}, {trainer.precision}"
        )
    return said


def _data_rows(task: Task, stream: ClipStream, ranks: int) -> Rows:
    for part in task.data.sets:
        stored = sum(shard.bytes for shard in part.shards)
        excluded = int(part.excluded.sum())
        yield (
            "shard set",
            f"{part.name}: {len(part):,} clips, {excluded:,} of them excluded, "
            f"{len(part.shards):,} shards, {_size(stored)}",
        )
    one = 2 * task.data.layout.width
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


def _cost_rows(
    weights: Weights,
    trainer: TrainerConfig,
    ranks: int,
    costs: dict[bool, Step],
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


def _negatives(config: PretrainConfig, snippets: int, ranks: int) -> str:
    micro = config.trainer.batch_size // (ranks * config.trainer.gradient_accumulation)
    pool = min(micro * ranks, config.objective.negatives or micro * ranks)
    cells = micro * snippets * pool * snippets
    return (
        f"{micro * snippets:,} anchors x {pool * snippets:,} snippets = {cells:,} cells of "
        f"each pair of modalities on each rank"
    )


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
    """Bytes to three figures."""
    power = min(4, int(math.log(count, 1024))) if count >= 1 else 0
    return f"{count / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
