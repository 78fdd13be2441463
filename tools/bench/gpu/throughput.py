"""Clips a second, MFU and memory of the train loop, by micro-batch and by precision."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import suppress

import torch

from avvp_dist.errors import first_line
from avvp_dist.tasks.pretraining import open_pretraining
from avvp_dist.training.dry_run import planned_batch
from avvp_dist.training.footprint import (
    PlannedRanks,
    StepCost,
    Weights,
    imitate_autocast,
    measure,
    memory,
)
from avvp_dist.training.precision import autocasts, model_dtype, product_dtype
from avvp_dist.training.throughput import peak_flops
from tools.bench.gpu.loop import Enough, StepTimer, config_of, release, trainer_of
from tools.bench.gpu.rows import Mode, Note, Setting, Throughput


def run(setting: Setting, deadline: float) -> Iterator[Throughput | Note]:
    """Measure each micro-batch in each mode, as far as memory and time allow."""
    longest = 0.0
    for mode in setting.modes:
        peak_flops.cache_clear()  # TF32 and float32 are one data type
        for clips in setting.clips:
            begun = time.monotonic()
            if begun + 2 * longest > deadline:  # the next one may be larger
                yield Note(f"{mode}, {clips:,} clips: left out, no time is left")
                continue
            yield _tried(setting, clips, mode)
            longest = max(longest, time.monotonic() - begun)


def _tried(setting: Setting, clips: int, mode: Mode) -> Throughput | Note:
    """A measured row, or the reason why there is none."""
    what = f"{mode}, {clips:,} clips"
    try:
        cost, size = planned(setting, clips, mode)
        if _memory() and size > _memory():
            return Note(f"{what}: {_gib(size)} are planned, the GPU has {_gib(_memory())}")
        return _measured(setting, clips, mode, cost, size)
    except torch.OutOfMemoryError:
        return Note(f"{what}: does not fit, though only {_gib(size)} were planned")
    except Exception as error:  # whatever a mode meets: the others go on
        traceback.print_exc()
        return Note(f"{what}: {type(error).__name__}: {first_line(error)}", failed=True)


def _measured(setting: Setting, clips: int, mode: Mode, cost: StepCost, size: int) -> Throughput:
    release()
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    config, timer = config_of(setting, clips, mode), StepTimer(setting)
    with trainer_of(config, timer) as trainer, suppress(Enough):
        peak = peak_flops(trainer.ranks.device, product_dtype(config.trainer))
        trainer.train()
    rate = timer.steps / timer.seconds
    memory_peak = torch.cuda.max_memory_allocated() - before if torch.cuda.is_available() else None
    return Throughput(
        clips=clips,
        precision=mode.precision,
        zero_stage=mode.zero_stage,
        compiled=mode.compiled,
        clips_per_second=rate * clips,
        mfu=rate * cost.flops / peak,
        tflops=rate * cost.flops / 1e12,
        peak_bytes=memory_peak,
        planned_bytes=size,
    )


def planned(setting: Setting, clips: int, mode: Mode) -> tuple[StepCost, int]:
    """Cost of a step, and the bytes on the rank, as `--dry-run` plans them."""
    config = config_of(setting, clips, mode)
    meta = PlannedRanks(0, 1, torch.device("meta"))
    task = open_pretraining(config, lambda: meta)
    weights = Weights.of(task.module)
    task.module.to(model_dtype(config.trainer))
    if autocasts(config.trainer):
        imitate_autocast(task.module)
    cost = measure(task.module, lambda: planned_batch(task, clips))
    return cost, int(sum(memory(weights, config.trainer, 1).values())) + cost.activations


def _memory() -> int:
    """Bytes of the GPU; 0 where there is none."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
