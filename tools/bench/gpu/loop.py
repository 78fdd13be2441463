"""The project's own train loop on the simulated clips, timed from outside."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from avvp_dist.config import PretrainConfig
from avvp_dist.config.files import load
from avvp_dist.runtime.ranks import connect
from avvp_dist.tasks.pretraining import open_pretraining
from avvp_dist.tracking.run import Run
from avvp_dist.training.trainer import Trainer
from tools.bench.gpu.rows import Mode, Setting

Beat = Callable[[int, str], None]


_STEPS_TO_SPARE = 20


class Enough(Exception):  # noqa: N818 - it is no error
    """Ends a train loop from its beat: nothing more is to be measured."""


def config_of(setting: Setting, clips: int, mode: Mode, **more: object) -> PretrainConfig:
    """Config of a training on the simulated clips.

    Clips repeat within an epoch, so that no epoch ends while steps are timed.

    Args:
        more: further keys; `__` stands for a dot.
    """
    steps = setting.warm_up + setting.steps + _STEPS_TO_SPARE
    keys: dict[str, object] = {
        "data.shards": setting.shards,
        "data.weights": f"[{1 + steps * clips // setting.corpus}]",
        "data.heldout": 0,
        "encoder.size": setting.size,
        "trainer.out": setting.folder / f"run-{mode.precision}-{mode.zero_stage}-{clips}",
        "trainer.batch_size": clips,
        "trainer.precision": mode.precision,
        "trainer.zero_stage": mode.zero_stage,
        "trainer.compile": mode.compiled,
        "trainer.log_every": 10**6,
        "tracking.enabled": False,
        "tracking.figures": False,
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    return load(PretrainConfig, None, [f"{key}={value}" for key, value in keys.items()])


@contextmanager
def trainer_of(config: PretrainConfig, beat: Beat) -> Iterator[Trainer]:
    """A trainer of a config, in the memory of those before it."""
    release()
    ranks = connect()
    torch.manual_seed(1)
    task = open_pretraining(config, lambda: ranks)
    with Run("pretrain", Path(config.trainer.out), config, {}) as record:
        trainer = Trainer(task, config, record, beat)
        try:
            yield trainer
        finally:
            trainer.close()


def release() -> None:
    """Give back the GPU's memory of tensors that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def wait_for_gpu() -> None:
    """Wait until the GPU, if there is one, has done everything it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class StepTimer:
    """Beat of a trainer: times steps after those that warm up, then ends the loop."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.steps, self.seconds = setting, 0, 0.0

    def __call__(self, step: int, doing: str) -> None:
        self.steps = step - self.setting.warm_up
        if doing != "reading" or self.steps < 0:
            return
        if not self.steps:
            wait_for_gpu()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            self._begun = time.perf_counter()
            return
        passed = time.perf_counter() - self._begun
        if self.steps == self.setting.steps or passed > self.setting.seconds:
            wait_for_gpu()
            self.seconds = time.perf_counter() - self._begun
            raise Enough


def seconds_per_step(setting: Setting, clips: int, mode: Mode) -> float:
    """Seconds of a step of the train loop."""
    timer = StepTimer(setting)
    with trainer_of(config_of(setting, clips, mode), timer) as trainer, suppress(Enough):
        trainer.train()
    return timer.seconds / timer.steps
