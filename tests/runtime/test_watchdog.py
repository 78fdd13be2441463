"""Progress files, and the end of a job without progress."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from avvp_dist.runtime.ranks import Ranks
from avvp_dist.runtime.watchdog import Watchdog

CPU = torch.device("cpu")

MEMBER = "tests/runtime/member.py"


def read(out: Path, rank: int) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / f"ranks/rank-{rank:05d}.json").read_text())
    return found


def test_progress_is_on_disk(tmp_path: Path) -> None:
    with Watchdog(tmp_path, Ranks(3, 4, CPU), seconds=30) as watchdog:
        assert read(tmp_path, 3)["doing"] == "starting"
        watchdog.beat(17, "saving")
        until = time.monotonic() + 5
        while read(tmp_path, 3)["step"] != 17 and time.monotonic() < until:
            time.sleep(0.1)
        found = read(tmp_path, 3)
    assert (found["step"], found["doing"], found["pid"]) == (17, "saving", os.getpid())
    assert read(tmp_path, 3)["ended"] is True
    assert [file.name for file in (tmp_path / "ranks").iterdir()] == ["rank-00003.json"]


def test_an_error_does_not_look_like_an_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError), Watchdog(tmp_path, Ranks(0, 1, CPU), seconds=30):
        raise ValueError
    assert (read(tmp_path, 0)["ended"], read(tmp_path, 0)["doing"]) == (
        False,
        "ended by ValueError",
    )


def test_a_beat_costs_nothing(tmp_path: Path) -> None:
    with Watchdog(tmp_path, Ranks(0, 1, CPU), seconds=30) as watchdog:
        started = time.perf_counter()
        for step in range(10_000):
            watchdog.beat(step, "updating")
        assert time.perf_counter() - started < 0.1


def test_two_ranks_end_and_the_one_behind_is_named(fork_ranks: Any, tmp_path: Path) -> None:
    """It is stuck in a system call, and runs: its thread writes, and it has made fewer beats."""
    jobs = [fork_ranks(MEMBER, "watched", str(tmp_path), "3", ranks=1, RANK=rank) for rank in "01"]
    errors = [job.communicate(timeout=60)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [5, 5]
    assert "no rank has moved for 3 s, behind are: rank 0 (" in errors[0]
    assert f"process {read(tmp_path, 0)['pid']}) at step 3, updating" in errors[0]
    assert "rank 1 (" not in errors[0] and errors[1].strip() == ""
    for rank in (0, 1):
        assert "member.py" in (tmp_path / f"ranks/rank-{rank:05d}.stacks").read_text()


def test_a_rank_whose_launcher_dies_gets_sigterm(fork_ranks: Any, tmp_path: Path) -> None:
    launcher = fork_ranks(MEMBER, "watched", str(tmp_path), "60", ranks=1, TORCHELASTIC_RUN_ID="1")
    until = time.monotonic() + 60
    while not (tmp_path / "ranks/rank-00000.json").exists() and time.monotonic() < until:
        time.sleep(0.1)
    rank = psutil.Process(int(str(read(tmp_path, 0)["pid"])))
    os.kill(launcher.pid, signal.SIGKILL)
    rank.wait(timeout=5)
