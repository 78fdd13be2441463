"""Started on two ranks as `gradients.py SHARDS OUT`: is the gradient of all ranks that of one?

Each case is one step, over all ranks by DeepSpeed and, in every rank, by autograd alone with the
joined batches. The differences are written to OUT as JSON.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avvp_dist.config import EncoderConfig, ObjectiveConfig, PretrainConfig
from avvp_dist.grounding.version import Grounding
from avvp_dist.loading.loader import Loader
from avvp_dist.loading.mixture import Mixture
from avvp_dist.loading.stream import ClipStream
from avvp_dist.runtime.ranks import Ranks, connect, single_rank
from avvp_dist.tasks.pretraining import PretrainingTask
from avvp_dist.training.engine import make_engine
from avvp_dist.training.task import StepInfo

CLIPS = {1: 17, 2: 20}
"""Of an epoch, by micro-batches a step. In its last step rank 1 has fewer clips, or none."""

Outcome = tuple[dict[str, Tensor], float, float]
"""Gradients, the loss, the fraction of negatives that was left out."""


def cases() -> Iterator[tuple[ObjectiveConfig, int, int]]:
    """Configs of objectives, ZeRO stage, micro-batches a step.

    Each stage meets each name and each kind of anchors, and each name meets each kind of anchors.
    Last come objectives beyond the paper.
    """
    names, kinds = ("uni", "cross", "multi"), ("all", "one", "shared")
    for stage, (number, name) in itertools.product(range(4), enumerate(names)):
        anchors = kinds[(number + stage) % 3]
        yield ObjectiveConfig(name, anchors=anchors, negatives=4 * (stage % 2)), stage, 1
    for stage in range(4):
        yield (
            ObjectiveConfig("multi", reduction="sum", false_negatives="keep", negatives=3),
            stage,
            2,
        )
    yield ObjectiveConfig(grounding=0.0, masked=1.0, negatives=4), 3, 1
    yield ObjectiveConfig(grounding=0.0, matching=1.0), 2, 1
    spans: dict[str, Any] = {"masked": 0.5, "mask_span": 2, "mask_fraction": 0.5}
    yield ObjectiveConfig("cross", matching=0.5, negatives=5, **spans), 0, 2
    yield ObjectiveConfig("cross", other_clips=0.0, contrastive=1.0, negatives=4), 0, 1
    yield ObjectiveConfig(contrastive=0.5, regularity=4.0), 3, 2


def config_of(shards: str, objective: ObjectiveConfig, stage: int, micro: int) -> PretrainConfig:
    config = PretrainConfig()
    config.data.shards, config.data.heldout, config.data.last_batch = [shards], 0.0, "pad"
    config.encoder, config.objective = EncoderConfig("tiny", dropout=0.0), objective
    config.trainer.zero_stage, config.trainer.gradient_accumulation = stage, micro
    config.trainer.batch_size = 6 * micro
    config.optimizer.lr = 0.0  # each step of a case begins with the same weights
    return config


def task_of(config: PretrainConfig, ranks: Ranks) -> tuple[PretrainingTask, Loader]:
    torch.manual_seed(0)
    data = Mixture.open(config.data.shards, [], config.data)
    task = PretrainingTask(config, data, [Grounding(part) for part in data.sets], ranks)
    (pool,) = task.pools
    count, micro = CLIPS[config.trainer.gradient_accumulation], config.trainer.gradient_accumulation
    part = type(pool)(pool.clips[:count], pool.shards[:count])
    place: dict[str, Any] = {
        "rank": ranks.rank,
        "world_size": ranks.size,
        "gradient_accumulation": micro,
    }
    stream = ClipStream([part], config.trainer.batch_size, seed=1, pad=True, **place)
    return task, Loader(data, stream, config.data, ranks.device)


def outcome(task: PretrainingTask, loader: Loader, ranks: Ranks, step: int, engine: Any) -> Outcome:
    """One step as the trainer makes it; without an engine by autograd alone."""
    from deepspeed.utils import safe_get_full_grad

    reads, planned = loader.read(step), loader.stream.planned(step)
    module = task.module
    module.zero_grad()
    loss_of_all = left_out = torch.zeros(())
    grads: dict[str, Tensor] = {}
    for number, read in enumerate(reads):
        batch = task.make_batch(read, StepInfo(step, 0, 0.0, number))
        loss, parts = (engine or module)(batch)
        weight = read.count * ranks.size * len(reads) / planned
        loss_of_all = loss_of_all + loss.detach() * weight / len(reads)
        left_out = left_out + parts.get("left_out", torch.zeros(())) * weight / len(reads)
        if engine is None:
            (loss * weight / len(reads)).backward()
            continue
        engine.backward(loss * weight)
        if number == len(reads) - 1:
            grads = {n: safe_get_full_grad(p).clone() for n, p in module.named_parameters()}
        engine.step()
    if engine is None:
        grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return grads, float(ranks.all_reduce_mean(loss_of_all)), float(ranks.all_reduce_mean(left_out))


def main(shards: str, out: str) -> None:
    ranks, found = connect(), []
    for objective, stage, micro in cases():
        config = config_of(shards, objective, stage, micro)
        case = f"{objective.label} {objective.anchors} ZeRO {stage}, {micro} x"
        task, loader = task_of(config, ranks)
        joined, joined_loader = task_of(config, single_rank())
        optimizer, trainer = config.optimizer, config.trainer
        engine = make_engine(task.module, task.parameter_groups(), optimizer, trainer, ranks)
        for step in (0, loader.stream.steps_per_epoch - 1):
            every = outcome(task, loader, ranks, step, engine)
            one = outcome(joined, joined_loader, single_rank(), step, None)
            assert every[0].keys() == one[0].keys()
            ours, theirs = (torch.cat([g.flatten() for g in x[0].values()]) for x in (every, one))
            worst = max(
                float((every[0][n] - g).norm() / one[0][n].norm()) for n, g in one[0].items()
            )
            found.append(
                {
                    "case": f"{case}, {step}",
                    "difference": float((ours - theirs).norm() / theirs.norm()),
                    "worst tensor": worst,
                    "losses": [every[1], one[1]],
                    "left out": [every[2], one[2]],
                }
            )
    if ranks.is_main:
        Path(out).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(*sys.argv[-2:])
