"""Shard sets in tasks: opened once by a process, and only the set that the job began with."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from avvp_dist.config import LoaderConfig, ReadConfig
from avvp_dist.errors import DataError
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.worker import open_once, read_config_of
from tests.shards.origins import write


def test_a_process_opens_a_set_once(local: ShardSet) -> None:
    config = ReadConfig(verify="size")
    first = open_once(local.name, local.digest, config)
    assert open_once(local.name, local.digest, ReadConfig(verify="size")) is first
    assert first.config == config
    assert open_once(local.name, local.digest, ReadConfig()) is not first


def test_a_set_that_changed_during_the_job_is_refused(local: ShardSet, tmp_path: Path) -> None:
    write(local.folder, seed=1)
    with pytest.raises(DataError, match=f"{local.name} changed during the job"):
        open_once(local.name, local.digest, ReadConfig())


def test_a_missing_shard_is_an_error_only_when_it_is_read(local: ShardSet) -> None:
    (local.folder / local.shards[1].name).unlink()
    shards = open_once(local.name, local.digest, ReadConfig())
    assert len(shards.gather(np.array([0, 6]))["audio"]) == 2
    with pytest.raises(DataError, match=r"shard-000001\.tar is missing"):
        shards.gather(np.array([3]))


def test_the_config_of_a_stage_is_cut_to_what_opens_a_set() -> None:
    config = read_config_of(LoaderConfig(verify="size", cache="/c", cache_gib=3, prefetch=7))
    assert type(config) is ReadConfig
    assert config == ReadConfig("size", "/c", 3)
    assert [field.name for field in fields(ReadConfig)] == ["verify", "cache", "cache_gib"]
