"""One sequence for every training: claim the folder, open the task, connect the ranks, train."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from avvp_dist.models.specification import CONFIG, read_spec
from avvp_dist.runtime.lock import claim
from avvp_dist.runtime.ranks import Ranks, connect
from avvp_dist.runtime.watchdog import Watchdog
from avvp_dist.tracking.run import Run
from avvp_dist.training.checkpoint import check_unclaimed
from avvp_dist.training.task import ConfigT, OpenTask, Task
from avvp_dist.training.trainer import Trainer


def run_training(stage: str, config: ConfigT, open_task: OpenTask[ConfigT]) -> None:
    """Train the task of a stage; the exported model lies in `trainer.out/model`.

    Args:
        stage: name of the MLflow experiment.
        open_task: opens the data, calls back when the ranks may connect, and builds the task.

    Raises:
        AvvpError: with what was wrong and what to do, for anything a user can put right.
    """
    out, trainer_config = Path(config.trainer.out), config.trainer
    with claim(out):
        check_unclaimed(out, trainer_config.resume)
        task = open_task(
            config, partial(_connect, trainer_config.hang_seconds, trainer_config.seed)
        )
        run = Run(
            stage,
            out,
            config,
            task.tags,
            inputs=task.inputs,
            resume=trainer_config.resume == "auto",
            active=task.ranks.is_main,
        )
        watchdog = Watchdog(out, task.ranks, trainer_config.hang_seconds)
        with watchdog, run:
            trainer = Trainer(task, config, run, watchdog.beat)
            trainer.train()
            if config.tracking.register and task.ranks.is_main:
                _register(run, task, trainer)


def _connect(hang_seconds: float, seed: int) -> Ranks:
    ranks = connect(hang_seconds)
    torch.manual_seed(seed)
    return ranks


def _register(run: Run, task: Task, trainer: Trainer) -> None:
    """Register the exported model with its lineage and the metrics of its epoch as tags."""
    model = trainer.out / "model"
    spec = read_spec(model / CONFIG)
    tags = {
        **task.tags,
        **{name: f"{value:.6g}" for name, value in spec.validated.items()},
        **task.validated_on,
        "clips_seen": str(trainer.clips_seen(spec.step)),
    }
    run.register(task.registered_name, model, tags, task.aliases)
