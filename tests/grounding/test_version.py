"""A grounding on disk: found, read in clip order, and refused if it does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from avvp_dist.commit import sha256, write_json
from avvp_dist.config import EncoderConfig, GroundConfig, PretrainConfig, TrackingConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.grounding.job import ground
from avvp_dist.grounding.summary import SUMMARY, GroundingSummary, LabelFile
from avvp_dist.grounding.version import Grounding, ModalityGrounding
from avvp_dist.loading.loader import read_clips
from avvp_dist.objectives.negatives import LinkRule
from avvp_dist.runtime.ranks import single_rank
from avvp_dist.shards.schema import MODALITY_IDS, PADDING
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.pretraining import open_pretraining
from avvp_dist.training.task import StepInfo


@pytest.fixture
def shards(packed: dict[str, ShardSet], tmp_path: Path) -> ShardSet:
    """A copy of the train shard set to put groundings beside."""
    ignored = shutil.ignore_patterns("grounding")
    return ShardSet(shutil.copytree(packed["train"].folder, tmp_path / "train", ignore=ignored))


def write_grounding(shards: ShardSet, name: str, manifest: str = "") -> Path:
    """A finished grounding, not of Algorithm 1, whose ids are the clip numbers."""
    folder = shards.folder / "grounding" / name
    folder.mkdir(parents=True)
    for shard, start in zip(shards.shards, shards.starts, strict=False):
        ids = np.arange(start, start + shard.clips, dtype=np.uint8)[:, None].repeat(10, 1)
        np.save(folder / f"{shard.stem}.npy", ids)
    files = [
        LabelFile(f"{shard.stem}.npy", shard.clips, sha256(folder / f"{shard.stem}.npy"))
        for shard in shards.shards
    ]
    summary = GroundingSummary(name, manifest or shards.content, files)
    write_json(folder / SUMMARY, summary.plain())
    return folder


def test_the_only_grounding_is_found_and_read_in_clip_order(shards: ShardSet) -> None:
    folder = write_grounding(shards, "v1")
    grounding = Grounding(shards)
    assert (grounding.place, grounding.version) == (str(folder), "v1")
    clips = np.array([95, 0, 41, 40, 39])
    np.testing.assert_array_equal(grounding.components[clips], clips[:, None].repeat(10, 1))


def test_a_grounding_is_chosen_among_several(shards: ShardSet) -> None:
    folders = [write_grounding(shards, name) for name in ("v1", "v2")]
    with pytest.raises(DataError, match=r"2 finished groundings, v1, v2.*data\.grounding"):
        Grounding(shards)
    assert Grounding(shards, folders[1]).version == "v2"
    assert Grounding(shards, str(folders[0])).version == "v1"


def test_two_groundings_are_a_graph_of_each_modality(shards: ShardSet) -> None:
    folders = [write_grounding(shards, name) for name in ("v1", "v2")]
    grounding = ModalityGrounding(shards, *folders)
    assert (grounding.version, grounding.rule) == ("v1|v2", "or")
    audio, visual = np.divmod(grounding.components, MODALITY_IDS)
    expected = Grounding(shards, folders[0]).components
    np.testing.assert_array_equal(audio, expected)
    np.testing.assert_array_equal(visual, expected)
    first = folders[1] / f"{shards.shards[0].stem}.npy"
    ids = np.load(first)
    ids[3] = PADDING
    np.save(first, ids)
    summary = GroundingSummary.read(folders[1])
    files = [LabelFile(first.name, len(ids), sha256(first)), *summary.files[1:]]
    write_json(folders[1] / SUMMARY, GroundingSummary("v2", shards.content, files).plain())
    again = ModalityGrounding(shards, *folders).components
    assert (again == PADDING).all(1).tolist() == [clip == 3 for clip in range(len(again))]


@pytest.mark.launch
def test_each_modality_may_have_a_grounding_of_its_own(grounded: ShardSet, tmp_path: Path) -> None:
    calibrated = yaml.safe_load((grounded.folder / "thresholds.yaml").read_text())
    off, folders = TrackingConfig(enabled=False, figures=False), []
    for stream, limit in calibrated["thresholds"].items():
        file = tmp_path / f"{stream}.yaml"
        file.write_text(yaml.safe_dump({**calibrated, "thresholds": {stream: limit}}))
        keys: dict[str, Any] = {"thresholds": str(file), "version": stream, "workers": 1}
        shards, out = str(grounded.folder), str(tmp_path / "labels")
        folders.append(str(ground(GroundConfig(shards=shards, out=out, tracking=off, **keys))))
    config = PretrainConfig()
    config.encoder, config.trainer.out = EncoderConfig("tiny"), str(tmp_path / "run")
    config.data.shards, config.data.heldout = [str(grounded.folder)], 0.2
    config.data.grounding, config.data.visual_grounding = [folders[0]], [folders[1]] * 2
    with pytest.raises(ConfigError, match=r"data\.visual_grounding=.* not one folder for each"):
        open_pretraining(config, single_rank)
    config.data.visual_grounding = [folders[1]]
    task = open_pretraining(config, single_rank)
    assert task.grounding == "audio|visual"
    assert task.link_rules == [LinkRule(calibrated["thresholds"], "or")]
    for name in ("uni", "cross", "multi"):
        config.objective.name = name
        read, _ = read_clips(task.data, np.arange(8))
        loss, _ = task.module(task.make_batch(read, StepInfo(0, 0, 0.0)))
        assert float(loss.detach()) > 0
    metrics = task.validate()
    assert all(0 < metrics[f"val/auc_{pair}"] < 1 for pair in ("audio", "visual", "cross"))


def test_a_shard_set_without_a_grounding_is_an_error(shards: ShardSet) -> None:
    with pytest.raises(DataError, match=r"0 finished groundings.*`avvp ground`"):
        Grounding(shards)


def test_an_unfinished_grounding_does_not_count(shards: ShardSet) -> None:
    folder = write_grounding(shards, "v1")
    (folder / "grounding.json").unlink()
    with pytest.raises(DataError, match="0 finished groundings"):
        Grounding(shards)
    with pytest.raises(DataError, match=r"v1/grounding\.json is missing"):
        Grounding(shards, folder)


def test_changed_labels_are_named(shards: ShardSet) -> None:
    folder = write_grounding(shards, "v1")
    path = folder / "shard-000001.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=rf"{path} has another SHA-256.*`avvp ground` again"):
        Grounding(shards)
    path.unlink()
    with pytest.raises(DataError, match=f"{path} is missing or damaged"):
        Grounding(shards)


def test_the_grounding_of_another_shard_set_is_refused(
    shards: ShardSet, packed: dict[str, ShardSet]
) -> None:
    folder = write_grounding(shards, "v1", packed["val"].digest)
    with pytest.raises(DataError, match=f"{folder} was made for another shard set"):
        Grounding(shards)


def test_rule_and_thresholds_are_those_of_the_plan(grounded: ShardSet) -> None:
    grounding = Grounding(grounded)
    plan = grounding.summary.plan
    assert plan is not None
    assert (grounding.rule, grounding.thresholds) == ("or", plan.thresholds)
    assert sorted(grounding.thresholds) == ["audio", "visual"]


def test_labels_of_another_program_have_no_thresholds(shards: ShardSet) -> None:
    write_grounding(shards, "v1")
    assert Grounding(shards).thresholds == {}
