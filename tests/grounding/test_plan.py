"""The plan of a grounding: its name, its digest, and thresholds that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.config import GroundConfig, LinkConfig
from avvp_dist.errors import ConfigError
from avvp_dist.grounding.plan import Plan
from avvp_dist.grounding.thresholds import write_thresholds
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet

LIMITS = {"visual": 0.9, "audio": 0.8512}


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    streams = {"audio": np.ones((2, 4)), "visual": np.ones((2, 3))}
    made = write_shard_set([Clip("c", streams)], tmp_path / "set", extractor="x")
    write(made, LIMITS)
    return made


def write(shards: ShardSet, limits: dict[str, float], extractor: str = "x", **more: Any) -> None:
    content = {"thresholds": limits, "extractor": extractor, **more}
    write_thresholds(shards.folder / "thresholds.yaml", content)


def plan(shards: ShardSet, **keys: Any) -> Plan:
    return Plan.of(GroundConfig(shards=str(shards.folder), **keys), shards)


@pytest.mark.parametrize(
    ("keys", "beginning"),
    [
        ({}, "or-audio0.851-visual0.900-"),
        ({"rule": "and", "grouping": "average-link"}, "and-average-link-audio0.851-visual0.900-"),
        ({"grouping": "clip"}, "clip-"),
    ],
)
def test_the_version_names_rule_and_thresholds(
    shards: ShardSet, keys: dict[str, str], beginning: str
) -> None:
    made = plan(shards, **keys)
    assert made.version.startswith(beginning)
    assert len(made.version) == len(beginning) + 6
    assert plan(shards, **keys) == made
    assert plan(shards, version="mine", **keys) == replace(made, version="mine")


def test_whatever_changes_labels_changes_version_and_digest(
    shards: ShardSet, tmp_path: Path
) -> None:
    np.save(tmp_path / "silent.npy", np.ones(4))
    plans = [
        plan(shards),
        plan(shards, silent_energy=0.5),
        plan(shards, silent_audio=str(tmp_path / "silent.npy")),
    ]
    write(shards, {**LIMITS, "audio": 0.85121})
    plans.append(plan(shards))
    assert len({made.version for made in plans}) == 4
    assert len({made.made_from("sha") for made in plans}) == 4
    assert plans[0].made_from("sha") != plans[0].made_from("other sha")


def test_the_silent_vector_counts_and_not_its_path(shards: ShardSet, tmp_path: Path) -> None:
    for name in ("one.npy", "two.npy"):
        np.save(tmp_path / name, np.full(4, 0.5))
    one, two = (plan(shards, silent_audio=str(tmp_path / n)) for n in ("one.npy", "two.npy"))
    assert one == two
    assert one.silent == [0.5] * 4 and one.link.silent_audio == ""


def test_the_json_form_comes_back(shards: ShardSet) -> None:
    made = plan(shards, rule="and", silent_energy=0.25)
    plain = json.loads(json.dumps(made.plain()))
    assert list(plain) == ["code", "thresholds", "joining", "silent", "version"]
    assert Plan.parse(plain) == made
    assert made.link == LinkConfig(rule="and", silent_energy=0.25)


def test_thresholds_of_another_extractor_are_refused(shards: ShardSet) -> None:
    write(shards, LIMITS, "clip-vit")
    with pytest.raises(ConfigError, match=r"extractor 'clip-vit', the shard set to 'x'"):
        plan(shards)


def test_thresholds_of_an_unknown_stream_are_refused(shards: ShardSet) -> None:
    write(shards, {"motion": 0.9})
    with pytest.raises(ConfigError, match="no stream motion"):
        plan(shards)


def test_a_rule_that_was_not_calibrated_for_is_noted(
    shards: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    write(shards, LIMITS, joining={"rule": "or", "grouping": "components"})
    plan(shards, rule="and")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("was calibrated for rule=or, this is rule=and")
