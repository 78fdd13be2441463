"""Ranks of a supervised job, as their files and the kernel show them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from avvp_dist.runtime.roster import Rank, Roster, signal_name

HERE = socket.gethostname()


def register(folder: Path, number: int, pid: int, host: str = HERE) -> None:
    entry = {"rank": number, "pid": pid, "host": host}
    (folder / f"{host}-{pid}.json").write_text(json.dumps(entry))


def report(folder: Path, pid: int, code: int, host: str = HERE) -> None:
    (folder / f"{host}-{pid}.end").write_text(json.dumps({"code": code, "time": 17.0}))


def refreshed(folder: Path, reaped: dict[int, int] | None = None) -> Rank:
    """The only rank of a folder."""
    roster = Roster(folder)
    roster.refresh(reaped or {})
    (rank,) = roster.ranks.values()
    return rank


def test_a_rank_that_runs_lives_even_when_it_has_reported_its_end(tmp_path: Path) -> None:
    register(tmp_path, 2, os.getpid())
    rank = refreshed(tmp_path)
    assert (rank.number, rank.alive, rank.failed) == (2, True, False)
    assert str(rank) == f"rank 2 (pid {os.getpid()}, {HERE})"
    report(tmp_path, os.getpid(), 4)
    rank = refreshed(tmp_path)
    assert (rank.alive, rank.code, rank.failed) == (True, 4, False)


def test_a_zombie_gives_the_signal_that_killed_it(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    register(tmp_path, 0, process.pid)
    roster = Roster(tmp_path)
    roster.refresh({})
    assert [rank.pid for rank in roster.living()] == [process.pid]
    (rank,) = roster.living()
    rank.send(signal.SIGKILL)
    until = time.monotonic() + 10
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the signal was not sent"
        time.sleep(0.01)
    roster.refresh({})
    assert roster.living() == [] and roster.failed() == [rank]
    assert rank.code == -signal.SIGKILL and rank.ended == pytest.approx(time.time(), abs=10)
    process.wait()
    rank.send(signal.SIGTERM)  # it is gone: nothing happens


@pytest.mark.parametrize(("reaped", "reported", "code"), [(-9, None, -9), (-9, 5, 5), (0, 0, 0)])
def test_what_a_rank_reports_counts_more_than_how_it_was_reaped(
    reaped: int, reported: int | None, code: int, tmp_path: Path
) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    register(tmp_path, 0, process.pid)
    if reported is not None:
        report(tmp_path, process.pid, reported)
    rank = refreshed(tmp_path, {process.pid: reaped})
    assert (rank.alive, rank.code, rank.failed) == (False, code, code != 0)


def test_a_rank_of_another_host_lives_until_it_reports(tmp_path: Path) -> None:
    register(tmp_path, 1, 4711, "elsewhere")
    roster = Roster(tmp_path)
    roster.refresh({})
    assert roster.living() == [], "its process cannot be seen or signalled from here"
    (rank,) = roster.ranks.values()
    assert rank.process is None
    report(tmp_path, 4711, 3, "elsewhere")
    rank = refreshed(tmp_path)
    assert (rank.alive, rank.code, rank.ended, rank.failed) == (False, 3, 17.0, True)


def test_signals_have_names() -> None:
    assert signal_name(9) == "SIGKILL" and signal_name(9999) == "signal 9999"
