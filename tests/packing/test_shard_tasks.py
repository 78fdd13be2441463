"""The task of one shard: what it depends on, and when its record counts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from avvp_dist.packing.shard_tasks import (
    LeftOut,
    PackedShard,
    ShardTask,
    finished_shard,
    pack_shard,
)
from avvp_dist.packing.sources import ArraySource
from tests.packing.packed import write_source


@pytest.fixture
def task(tmp_path: Path) -> ShardTask:
    """The first five clips of a folder of features, of a set with T = 10."""
    source = ArraySource(write_source(tmp_path / "source"), "train", "", {})
    (tmp_path / ".pack").mkdir()
    tar = tmp_path / "shard-000000.tar"
    return ShardTask(source.part(0, 5), tar, 10, {"audio": 4, "visual": 6}, "float16", "pad")


def test_a_shard_is_finished_with_its_record_and_its_tar(task: ShardTask) -> None:
    key = task.digest()
    assert finished_shard(task.tar, key) is None
    assert pack_shard(task, key) == LeftOut()
    packed = finished_shard(task.tar, key)
    assert packed is not None and packed.scan is not None
    assert packed.scan.bytes == task.tar.stat().st_size
    assert finished_shard(task.tar, "another key") is None
    task.tar.write_bytes(b"")
    assert finished_shard(task.tar, key) is None


def test_clips_that_do_not_fit_are_left_out_with_their_reason(task: ShardTask) -> None:
    asked = replace(task, dims={"audio": 4, "visual": 7})
    left_out = pack_shard(asked, asked.digest())
    assert left_out.counts() == {"broken": 5, "short": 0}
    assert all(line.startswith("clip -a.") for line in left_out.broken)
    asked = replace(task, snippets=12, short="drop")
    assert pack_shard(asked, asked.digest()).short[0] == "clip -a.0_0_10 has 10 of 12 snippets"


def test_the_digest_depends_on_the_files_and_on_the_plan(task: ShardTask) -> None:
    (file, *_) = task.part.files()
    digests = [task.digest(), replace(task, snippets=9).digest(), replace(task, short="").digest()]
    os.utime(file, ns=(0, 1))
    assert len({*digests, task.digest()}) == 4


@pytest.mark.parametrize("record", [{}, {"scan": {}}, {"scan": None, "left_out": {"odd": 1}}])
def test_a_damaged_record_is_none(record: dict[str, object]) -> None:
    assert PackedShard.parse(record) is None
