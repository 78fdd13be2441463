"""Gradients of pretraining: those of all ranks are those of one, and every tensor has its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.config import (
    EncoderConfig,
    GroundConfig,
    ObjectiveConfig,
    PretrainConfig,
    TrackingConfig,
)
from avvp_dist.grounding.job import ground
from avvp_dist.loading.loader import read_clips
from avvp_dist.loading.mixture import Mixture
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.pretraining import PretrainingTask
from avvp_dist.training.task import StepInfo

pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def uneven(grounded: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """24 clips of `grounded` cut to 10, 9, ... 1 snippets, grounded by the same thresholds."""
    streams = grounded.gather(np.arange(24))
    clips = (
        Clip(one, {name: x[n][: 10 - n % 10] for name, x in streams.items()})
        for n, one in enumerate(grounded.ids[:24])
    )
    out = tmp_path_factory.mktemp("uneven") / "set"
    shards = write_shard_set(clips, out, snippets=10, extractor=grounded.extractor)
    shutil.copy(grounded.folder / "thresholds.yaml", out)
    ground(
        GroundConfig(
            shards=str(out), workers=1, tracking=TrackingConfig(enabled=False, figures=False)
        )
    )
    return shards


def test_two_ranks_have_the_gradient_and_the_loss_of_one(
    uneven: ShardSet, fork_ranks: Any, tmp_path: Path
) -> None:
    out = tmp_path / "found.json"
    process = fork_ranks("tests/cluster/gradients.py", str(uneven.folder), str(out))
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    found = json.loads(out.read_text())
    assert len(found) == 2 * (3 * 4 + 4 + 5)
    for one in found:
        assert max(one["difference"], one["worst tensor"]) <= 1e-5, one
        assert one["losses"][0] == pytest.approx(one["losses"][1], rel=1e-6), one
        assert one["left out"][0] == pytest.approx(one["left out"][1], rel=1e-5), one
    assert any(one["left out"][0] > 0.01 for one in found)


class Halves:
    """A grounding: the first and the second half of every clip."""

    version, rule = "halves", "or"
    thresholds: dict[str, float] = {}  # noqa: RUF012
    components = np.array([[0, 0, 0, 1, 1, 1]] * 12, np.uint8)


RELEASED = {"visual_tokens": "separate", "mask_vectors": True}
UNSEEN = {"norms.motion.weight", "norms.motion.bias", "embed.motion.weight", "embed.motion.bias"}


@pytest.mark.parametrize(
    ("encoder", "hidden", "idle"),
    [
        ({}, [], set()),
        ({"joint": False}, [], set()),
        ({"visual_tokens": "separate", "mask_vectors": True}, [], set()),
        ({}, ["motion"], UNSEEN),
        (
            {"visual_tokens": "separate", "mask_vectors": True},
            ["motion"],
            UNSEEN | {"mask_vectors.motion"},
        ),
    ],
)
@pytest.mark.parametrize("name", ["uni", "cross", "multi"])
def test_every_tensor_learns_but_those_of_hidden_streams(
    name: str, encoder: dict[str, Any], hidden: list[str], idle: set[str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    shapes = {"audio": (6, 5), "motion": (6, 4), "visual": (6, 7)}
    clips = (Clip(f"{n}", {k: rng.normal(size=x) for k, x in shapes.items()}) for n in range(12))
    config = PretrainConfig()
    config.encoder, config.objective = EncoderConfig("tiny", **encoder), ObjectiveConfig(name)
    config.data.heldout, config.data.hidden_streams = 0.0, hidden
    shards = write_shard_set(clips, tmp_path)
    task: Any = PretrainingTask(config, Mixture([shards]), [Halves()])  # type: ignore[list-item]
    read, _ = read_clips(task.data, np.arange(12))
    task.module(task.make_batch(read, StepInfo(0, 0, 0.0)))[0].backward()
    gradients = {n: p.grad for n, p in task.encoder.named_parameters() if p.requires_grad}
    assert {n for n, g in gradients.items() if g is None or not g.abs().max() > 1e-6} == idle
