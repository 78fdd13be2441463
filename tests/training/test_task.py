"""The interface of tasks: each real task offers everything that the trainer asks of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.config import FinetuneConfig, PretrainConfig
from avvp_dist.grounding.version import Grounding
from avvp_dist.loading.mixture import Mixture
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.finetuning import ParsingTask
from avvp_dist.tasks.pretraining import PretrainingTask
from avvp_dist.training.task import Task

MEMBERS = {*Task.__annotations__, *(name for name in vars(Task) if not name.startswith("_"))}


@pytest.fixture
def tasks(grounded: ShardSet, packed: dict[str, ShardSet], features: Path) -> list[Task]:
    pretraining, finetuning = PretrainConfig(), FinetuneConfig()
    pretraining.encoder.size, finetuning.parser.width = "tiny", 16
    annotations = read_annotations(features, "val")
    return [
        PretrainingTask(pretraining, Mixture([grounded]), [Grounding(grounded)]),
        ParsingTask(finetuning, Mixture([packed["train"]]), packed["val"], annotations),
    ]


def test_every_member_is_there(tasks: list[Task]) -> None:
    assert {"make_batch", "validate", "export", "pools", "tags"} < MEMBERS
    for task in tasks:
        assert [name for name in MEMBERS if not hasattr(task, name)] == [], type(task).__name__


def test_an_export_is_the_model_alone_with_its_specification(tasks: list[Task]) -> None:
    for task in tasks:
        weights, spec = task.export(task.module.state_dict(), 7, {"val/loss": 0.5})
        assert (spec.step, spec.validated) == (7, {"val/loss": 0.5})
        assert spec.dims == task.data.dims and spec.kind in task.registered_name
        whole = {
            name.partition(".")[2]: tensor for name, tensor in task.module.state_dict().items()
        }
        assert weights.keys() == whole.keys()


def test_every_trainable_parameter_is_in_one_group(tasks: list[Task]) -> None:
    for task in tasks:
        grouped = [p for group in task.parameter_groups() for p in group.params]
        trainable = [p for p in task.module.parameters() if p.requires_grad]
        assert len(grouped) == len({id(p) for p in grouped}) == len(trainable)
