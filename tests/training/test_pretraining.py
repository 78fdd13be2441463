"""Pretraining through the real launcher: two ranks, kill -9, resume, exported encoder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from avvp_dist.data.shards import ShardSet
from avvp_dist.models.export import load_encoder
from avvp_dist.tracking.records import read_records, read_series

pytestmark = pytest.mark.launch

STEPS = 20
KEYS = (
    "encoder.size=tiny",
    f"trainer.max_steps={STEPS}",
    "trainer.batch_size=16",
    "trainer.log_every=1",
    "trainer.checkpoint_every=4",
    "data.heldout=0.1",
    "tracking.enabled=false",
)


def finish(process: Any) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def undisturbed(grounded: ShardSet, launch: Any, tmp_path_factory: Any) -> Path:
    out: Path = tmp_path_factory.mktemp("undisturbed")
    keys = (f"data.shards={grounded.folder}", f"trainer.out={out}", *KEYS)
    code, _, err = finish(launch("launch/pretrain.py", *keys))
    assert code == 0, err
    return out


def test_two_ranks_train_and_export(undisturbed: Path, grounded: ShardSet) -> None:
    series = read_series(undisturbed)
    assert list(series["loss"]) == list(range(1, STEPS + 1))
    assert set(series) >= {"auc", "auc/audio", "auc/visual", "auc/cross", "lr", "clips_per_second"}
    assert series["loss"][STEPS] < series["loss"][1]
    _, meta = load_encoder(undisturbed / "model")
    assert meta["dims"] == grounded.dims and meta["manifest"] == grounded.digest
    assert (undisturbed / "curves.png").stat().st_size > 10_000


def test_killed_rank_and_resume_give_the_same_losses_bit_for_bit(
    undisturbed: Path, grounded: ShardSet, launch: Any, tmp_path: Path
) -> None:
    keys = (f"data.shards={grounded.folder}", f"trainer.out={tmp_path}", *KEYS)
    process = launch("launch/pretrain.py", *keys)
    _wait_for(tmp_path / "checkpoints" / "step-00000008" / "manifest.json", process)
    (rank,) = (
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "--local_rank=1" in child.cmdline()
    )
    os.kill(rank.pid, signal.SIGKILL)
    code, _, _ = finish(process)
    assert code != 0
    assert len(read_series(tmp_path)["loss"]) < STEPS

    code, out, err = finish(launch("launch/pretrain.py", *keys, "trainer.resume=auto"))
    assert code == 0, err
    assert "resumed at step" in out
    expected = read_series(undisturbed)["loss"]
    metrics = [r for r, _ in read_records(tmp_path) if r["kind"] == "metrics"]
    losses = [(r["step"], r["values"]["loss"]) for r in metrics if "loss" in r["values"]]
    assert {step for step, _ in losses} == set(expected)
    assert [loss for _, loss in losses] == [expected[step] for step, _ in losses]
    ours, theirs = (
        (f / "model" / "model.safetensors").read_bytes() for f in (tmp_path, undisturbed)
    )
    assert ours == theirs


def test_a_finished_run_is_not_overwritten(
    undisturbed: Path, grounded: ShardSet, launch: Any
) -> None:
    keys = (f"data.shards={grounded.folder}", f"trainer.out={undisturbed}", *KEYS)
    code, _, err = finish(launch("launch/pretrain.py", *keys, ranks=1))
    assert code == 4
    assert f"error: {undisturbed} already holds a run" in err
    assert len(read_series(undisturbed)["loss"]) == STEPS


def test_a_damaged_checkpoint_is_an_error_not_a_fresh_start(
    undisturbed: Path, grounded: ShardSet, launch: Any
) -> None:
    newest = sorted((undisturbed / "checkpoints").glob("step-*"))[-1]
    file = next(path for path in (newest / "state").iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    keys = (f"data.shards={grounded.folder}", f"trainer.out={undisturbed}", *KEYS)
    code, _, err = finish(launch("launch/pretrain.py", *keys, "trainer.resume=auto"))
    assert code == 4
    assert err.count("is damaged") >= 1 and str(file) in err


def _wait_for(path: Path, process: Any) -> None:
    for _ in range(2400):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")
