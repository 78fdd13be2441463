"""The summary of a grounding: sums over shards, its JSON form, and damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.commit import write_json
from avvp_dist.config import LinkConfig
from avvp_dist.errors import DataError
from avvp_dist.grounding.plan import Plan
from avvp_dist.grounding.profile import ComponentProfile
from avvp_dist.grounding.summary import GroundingSummary, ShardRecord
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet

PLAN = Plan("0.1", {"audio": 0.9}, LinkConfig(), [], "v1")


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    clips = [Clip(f"c{n}", {"audio": np.ones((3, 4))}) for n in range(5)]
    return write_shard_set(clips, tmp_path / "set", clips_per_shard=3)


@pytest.fixture
def records() -> list[ShardRecord]:
    """Records of three clips and of two, one of which cannot be read."""
    first = ComponentProfile.of(np.array([[0, 0, 0], [0, 1, 1], [0, 1, 2]], np.uint8))
    second = ComponentProfile.of(np.array([[0, 0, 2], [255] * 3], np.uint8))
    counts = {"snippets": 9, "clips": 3, "joined": 4, "joined/audio": 3, "silent": 1, "short": 0}
    return [
        ShardRecord("a" * 64, {**counts, "unreadable": 0}, [], first),
        ShardRecord(
            "b" * 64,
            {"clips": 1, "snippets": 3, "joined": 1, "joined/audio": 1, "unreadable": 1},
            ["clip c4"],
            second,
        ),
    ]


def test_the_summary_is_the_sum_of_the_records(
    shards: ShardSet, records: list[ShardRecord]
) -> None:
    summary = GroundingSummary.of(PLAN, shards, records)
    assert summary.counts == {
        "clips": 4, "joined": 5, "joined/audio": 4, "short": 0, "silent": 1, "snippets": 12,
        "unreadable": 1,
    }  # fmt: skip
    assert summary.figures == {
        "components_per_clip": 2,
        "one_component_share": 0.25,
        "positive_pair_share": 5 / 12,
        "joined_pair_share": 5 / 12,
        "joined/audio_pair_share": 4 / 12,
    }
    assert summary.described().splitlines() == [
        "2.00 components a clip, 25.0% of clips are one component, 41.7% of pairs are positive "
        "(joined 41.7%, joined/audio 33.3%)",
        "1 silent, 1 unreadable",
    ]
    fractions = summary.fractions()
    assert fractions["pairs joined by the rule"] == 5 / 12
    assert fractions["silent snippets"] == 1 / 12
    assert fractions["unreadable clips"] == 1 / 5


def test_the_json_form_comes_back(
    shards: ShardSet, records: list[ShardRecord], tmp_path: Path
) -> None:
    summary = GroundingSummary.of(PLAN, shards, records)
    write_json(tmp_path / "grounding.json", summary.plain())
    read = GroundingSummary.read(tmp_path)
    assert read.plain() == summary.plain()
    assert read.plan == PLAN
    assert [file.sha256[0] for file in read.files] == ["a", "b"]
    assert [file.clips for file in read.files] == [3, 2]
    assert read.manifest == shards.content


def test_a_record_comes_back_from_its_json_form(records: list[ShardRecord]) -> None:
    for record in records:
        parsed = ShardRecord.parse(json.loads(json.dumps(record.plain())))
        assert parsed is not None and parsed.plain() == record.plain()
        assert parsed.unreadable == record.unreadable


@pytest.mark.parametrize("key", ["sha256", "unreadable", "faults", "profile"])
def test_a_damaged_record_counts_as_none(records: list[ShardRecord], key: str) -> None:
    plain = records[1].plain()
    assert ShardRecord.parse({**plain, key: None}) is None
    del plain[key]
    assert ShardRecord.parse(plain) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": None}, "is damaged, or another version"),
        ({"shards": [{"name": "x"}]}, "is damaged, or another version"),
        ({"plan": {"code": "1"}}, "is damaged, or another version"),
        ({"profile": {"sizes": ["x"]}}, "is damaged, or another version"),
    ],
)
def test_a_damaged_summary_is_named(
    shards: ShardSet,
    records: list[ShardRecord],
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    plain = GroundingSummary.of(PLAN, shards, records).plain()
    write_json(tmp_path / "grounding.json", {**plain, **change})
    with pytest.raises(DataError, match=f"{tmp_path}/grounding.json {message}.*`avvp ground`"):
        GroundingSummary.read(tmp_path)


def test_a_missing_summary_and_one_that_is_no_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"grounding\.json is missing: no finished grounding"):
        GroundingSummary.read(tmp_path)
    (tmp_path / "grounding.json").write_text("{")
    with pytest.raises(DataError, match=r"grounding\.json is not JSON"):
        GroundingSummary.read(tmp_path)
