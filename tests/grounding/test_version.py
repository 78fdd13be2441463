"""A grounding on disk: found, read in clip order, and refused if it does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from avvp_dist.commit import sha256, write_json
from avvp_dist.errors import DataError
from avvp_dist.grounding.summary import SUMMARY, GroundingSummary, LabelFile
from avvp_dist.grounding.version import Grounding
from avvp_dist.shards.shard_set import ShardSet


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
