"""Ranks killed eight times in one run, within steps and within saves, and resumed each time."""

from __future__ import annotations

import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tracking.records import MetricsRecord, read_records, read_series
from tests.cluster.faulty_pretrain import SAVING
from tests.tracking.servers import free_port

pytestmark = pytest.mark.launch

STEPS, EVERY = 16, 2


class Job:
    """One pretraining, started as often as it takes."""

    def __init__(self, fork_ranks: Any, shards: ShardSet, out: Path, *keys: str) -> None:
        self.fork_ranks, self.out = fork_ranks, out
        self.keys = (
            f"data.shards={shards.folder}",
            f"trainer.out={out}",
            "encoder.size=tiny",
            "data.heldout=0",
            f"trainer.max_steps={STEPS}",
            "trainer.batch_size=16",
            "trainer.log_every=1",
            f"trainer.checkpoint_every={EVERY}",
            "trainer.resume=auto",
            "tracking.enabled=false",
            "tracking.figures=false",
            *keys,
        )

    def run(self, fault: str = "0:nowhere:0", ranks: int = 2) -> tuple[int, str, str]:
        """Exit code, output, errors."""
        script = "tests/cluster/faulty_pretrain.py"
        process = self.fork_ranks(script, *self.keys, ranks=ranks, FAULT=fault)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err

    def start(self, fault: str = "0:nowhere:0", ranks: int = 2) -> str:
        """Run it to its end or to the fault; what it printed."""
        code, out, err = self.run(fault, ranks)
        assert (code == 0) == (":nowhere:" in fault), err
        return out

    def losses(self) -> dict[int, float]:
        """The newest loss of each step; every computation of a step gave this one."""
        metrics = [r for r, _ in read_records(self.out) if isinstance(r, MetricsRecord)]
        found = [(r.step, r.values["train/loss"]) for r in metrics if "train/loss" in r.values]
        series = read_series(self.out)["train/loss"]
        assert all(series[step] == loss for step, loss in found)
        return series


def test_eight_kills_within_steps_and_saves_change_nothing(
    grounded: ShardSet, fork_ranks: Any, tmp_path: Path
) -> None:
    undisturbed = Job(fork_ranks, grounded, tmp_path / "undisturbed")
    undisturbed.start()
    job = Job(fork_ranks, grounded, tmp_path / "killed")
    draw = random.Random(3)
    saves = [f"0:{point}:{2 if point == 'buffers' else 1}" for point in SAVING]
    steps = [f"{rank}:update:{draw.randrange(EVERY + 1, 2 * EVERY)}" for rank in range(2)]
    faults = saves + steps
    draw.shuffle(faults)
    for fault in faults:
        job.start(fault)
    job.start()
    assert job.losses() == undisturbed.losses()
    assert len(job.losses()) == STEPS
    weights = [(one.out / "model/model.safetensors").read_bytes() for one in (job, undisturbed)]
    assert weights[0] == weights[1]
    assert not (job.out / "curves.png").exists()  # they were not asked for


def test_kills_with_zero_2_and_other_numbers_of_ranks(
    grounded: ShardSet, fork_ranks: Any, tmp_path: Path
) -> None:
    # Dropout is drawn by each rank, so it must be off where their number changes.
    keys = ("trainer.zero_stage=2", "encoder.dropout=0")
    undisturbed = Job(fork_ranks, grounded, tmp_path / "undisturbed", *keys)
    undisturbed.start()
    job = Job(fork_ranks, grounded, tmp_path / "killed", *keys)
    draw = random.Random(4)
    for rank in range(2):
        job.start(f"{rank}:update:{draw.randrange(EVERY + 1, 2 * EVERY)}")
    job.start()
    assert job.losses() == undisturbed.losses()

    elastic = Job(fork_ranks, grounded, tmp_path / "elastic", *keys)
    elastic.start("1:update:5")
    assert "2 ranks, ZeRO 2, fp32 turn into 1 ranks" in elastic.start("0:update:5", ranks=1)
    assert "1 ranks, ZeRO 2, fp32 turn into 4 ranks" in elastic.start(ranks=4)
    expected = undisturbed.losses()
    series = read_series(elastic.out)["train/loss"]
    assert series == pytest.approx(expected, rel=1e-5)


def test_a_full_disk_loses_nothing(grounded: ShardSet, fork_ranks: Any, small_disk: Any) -> None:
    disk = small_disk("10m")  # room for one checkpoint
    job = Job(fork_ranks, grounded, disk / "run", "trainer.zero_stage=1", "trainer.keep=100")
    code, _, err = job.run()
    assert code == 3, err
    folder = job.out / "checkpoints"
    assert f"checkpoint {folder}/step-00000004 cannot be written: no space left" in err
    assert [path.name for path in folder.iterdir()] == ["step-00000002"]
    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
    assert "resumed at step 2" in job.start()
    assert len(job.losses()) == STEPS


def test_a_peer_lost_while_saving_is_named_as_one(
    grounded: ShardSet, fork_ranks: Any, tmp_path: Path
) -> None:
    """Each rank is a job of its own: nobody ends the other before it can speak."""
    job = Job(fork_ranks, grounded, tmp_path / "run", "trainer.zero_stage=1")
    script, shared = (
        "tests/cluster/faulty_pretrain.py",
        {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
    )
    shared |= {"MASTER_PORT": str(free_port()), "FAULT": "1:torch.save:2"}
    ranks = [
        fork_ranks(script, *job.keys, ranks=1, RANK=n, LOCAL_RANK=n, **shared) for n in ("0", "1")
    ]
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [5, 256 - signal.SIGKILL], said
    assert "error: another rank is gone or cannot be reached" in said[0]
    kept = [path.name for path in (job.out / "checkpoints").iterdir()]
    assert kept == ["step-00000002"]


def test_a_killed_training_stops_early_at_the_same_step(
    grounded: ShardSet, fork_ranks: Any, tmp_path: Path
) -> None:
    # Without a learning rate, the first validation is the best.
    keys = ("optimizer.lr=0", "data.heldout=0.2", "trainer.export=best", "trainer.validate_every=1")
    job = Job(fork_ranks, grounded, tmp_path, *keys, "trainer.patience=5")
    job.start("1:update:5")
    said = job.start()
    assert f"{tmp_path}: resumed at step" in said
    assert said.count("stopped early at step 6 of 16") == 1
    assert read_series(tmp_path)["train/early_stop_step"] == {6: 6}
