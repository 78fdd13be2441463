"""One sequence for every training: claim the folder, open the task, connect the ranks, train."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from avvp_dist.config import TrainerConfig
from avvp_dist.errors import ConfigError, first_line
from avvp_dist.models.specification import CONFIG, read_spec
from avvp_dist.runtime.lock import claim
from avvp_dist.runtime.ranks import Ranks, connect
from avvp_dist.runtime.watchdog import Watchdog
from avvp_dist.tracking.run import Run
from avvp_dist.training.checkpoint import check_unclaimed
from avvp_dist.training.task import ConfigT, OpenTask, Task
from avvp_dist.training.trainer import Trainer

_WORKSPACE, _DETERMINISTIC = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""The variable of cuBLAS, and its values with which products have the same bits each time."""


def run_training(stage: str, config: ConfigT, open_task: OpenTask[ConfigT]) -> None:
    """Train the task of a stage; the exported model lies in `trainer.out/model`.

    Args:
        stage: name of the MLflow experiment.
        open_task: opens the data, calls back when the ranks may connect, and builds the task.

    Raises:
        AvvpError: with what was wrong and what to do, for anything a user can put right.
    """
    out, trainer_config = Path(config.trainer.out), config.trainer
    with deterministic(trainer_config.deterministic), claim(out):
        check_unclaimed(out, trainer_config.resume)
        task = open_task(config, partial(_connect, trainer_config))
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
            trainer.close()


def _connect(config: TrainerConfig) -> Ranks:
    ranks = connect(config.hang_seconds, config.device)
    torch.manual_seed(config.seed)
    return ranks


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Let torch use only algorithms that give the same bits each time, if that is wanted.

    It begins before CUDA is used, because cuBLAS reads its variable once. The order in which NCCL
    adds up the ranks' gradients is NCCL's.

    Raises:
        ConfigError: if the user's variable says otherwise, or an operation has no such algorithm.
    """
    if not wanted:
        yield
        return
    workspace = os.environ.setdefault(_WORKSPACE, _DETERMINISTIC[0])
    if workspace not in _DETERMINISTIC:
        raise ConfigError(
            f"trainer.deterministic: {_WORKSPACE}={workspace} lets cuBLAS give other bits",
            remedy=f"Unset it, or set it to {' or '.join(_DETERMINISTIC)}",
        )
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise ConfigError(
            f"trainer.deterministic: {first_line(error).partition(', but')[0]}",
            remedy="Set trainer.deterministic=false",
            shared=True,
        ) from error
    finally:
        torch.use_deterministic_algorithms(False)
        cudnn.deterministic, cudnn.benchmark = before


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
