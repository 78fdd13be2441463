"""Seconds of a checkpoint, of an export and of a validation."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from avvp_dist.tasks.pretraining import PretrainingTask
from avvp_dist.tracking.records import read_series
from tools.bench.gpu.loop import config_of, trainer_of
from tools.bench.gpu.rows import Mode, Note, Saving, Setting

STEPS = 2


def run(setting: Setting, deadline: float) -> Iterator[Saving | Note]:
    """Train a few steps to their end, with half of the clips held out."""
    longest = 0.0
    for mode in dict.fromkeys(replace(mode, compiled=False) for mode in setting.modes):
        if mode.precision != setting.mode.precision:
            continue
        begun = time.monotonic()
        if begun + longest > deadline:
            yield Note(f"{mode}: left out, no time is left")
            continue
        yield _saved(setting, mode)
        longest = max(longest, time.monotonic() - begun)


def _saved(setting: Setting, mode: Mode) -> Saving:
    keys = {"data__heldout": 0.5, "data__heldout_clips": setting.corpus}
    out = setting.folder / f"saved-{mode.zero_stage}"
    config = config_of(
        setting, setting.clips[0], mode, **keys, trainer__max_steps=STEPS, trainer__out=out
    )
    seconds: defaultdict[str, float] = defaultdict(float)
    last = ("", time.perf_counter())

    def watch(step: int, doing: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[last[0]] += now - last[1]
        last = (doing, now)

    with trainer_of(config, watch) as trainer:
        trainer.train()
        watch(STEPS, "done")
        assert isinstance(trainer.task, PretrainingTask)
        heldout = len(trainer.task.heldout)
    return Saving(
        precision=mode.precision,
        zero_stage=mode.zero_stage,
        checkpoint_seconds=seconds["copying its state"],
        checkpoint_write_seconds=read_series(out)["train/checkpoint_write_seconds"][STEPS],
        checkpoint_bytes=_size(out / "checkpoints"),
        export_seconds=seconds["exporting"],
        validation_seconds=seconds["validating"],
        heldout=heldout,
    )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
