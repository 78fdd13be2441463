"""The sequence of every training: folder, data, ranks, task; nothing is left of one that fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from avvp_dist.config import PretrainConfig
from avvp_dist.errors import CheckpointError, ClusterError, DataError
from avvp_dist.runtime.lock import claim
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.pretraining import PretrainingTask, open_pretraining
from avvp_dist.tracking.records import RegisterRecord, read_records
from avvp_dist.training.runner import run_training


def config_of(out: Path, shards: ShardSet | None = None) -> PretrainConfig:
    config = PretrainConfig()
    config.trainer.out, config.trainer.seed, config.trainer.max_steps = str(out), 31, 1
    config.encoder.size, config.tracking.enabled = "tiny", False
    config.data.shards = [str(shards.folder)] if shards else []
    return config


def never(
    config: PretrainConfig, connect: Callable[[], Ranks], *, scratch: Path | None = None
) -> PretrainingTask:
    raise AssertionError("the task is opened")


def test_data_is_opened_under_the_lock_and_before_the_ranks_connect(
    grounded: ShardSet, one_rank: None, tmp_path: Path
) -> None:
    out, order = tmp_path / "run", []

    def opened(
        config: PretrainConfig, connect: Callable[[], Ranks], *, scratch: Path | None = None
    ) -> PretrainingTask:
        order.append(((out / "lock.json").is_file(), torch.distributed.is_initialized()))

        def connected() -> Ranks:
            ranks = connect()
            order.append((ranks.size, torch.initial_seed()))
            return ranks

        return open_pretraining(config, connected)

    run_training("pretrain", config_of(out, grounded), opened)
    assert order[0][0] and order[1] == (1, 31)
    assert not (out / "lock.json").exists()
    (record,) = (r for r, _ in read_records(out) if isinstance(r, RegisterRecord))
    assert (record.model, record.tags["clips_seen"]) == ("avvp-encoder", "64")


def test_a_refusal_leaves_nothing_behind(tmp_path: Path) -> None:
    def refused(
        config: PretrainConfig, connect: Callable[[], Ranks], *, scratch: Path | None = None
    ) -> PretrainingTask:
        raise DataError("shard 3 is missing")

    with pytest.raises(DataError, match="shard 3"):
        run_training("pretrain", config_of(tmp_path / "run"), refused)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_of_another_run_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="already holds a run"):
        run_training("pretrain", config_of(tmp_path), never)
    with claim(tmp_path / "held"), pytest.raises(ClusterError, match="belongs to a running job"):
        run_training("pretrain", config_of(tmp_path / "held"), never)
