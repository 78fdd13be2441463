"""An output folder belongs to one running job."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from avvp_dist.errors import ClusterError
from avvp_dist.runtime.lock import LOCK, claim


@pytest.fixture
def sleeper() -> Iterator[psutil.Process]:
    """Another process."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def held_by(process: psutil.Process, out: Path, host: str = "", earlier: float = 0) -> Path:
    started = process.create_time() - earlier
    holder = {"pid": process.pid, "host": host or socket.gethostname(), "started": started}
    (out / LOCK).write_text(json.dumps(holder))
    return out / LOCK


def test_a_claim_is_there_while_it_is_held_and_not_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), claim(tmp_path / "run"):
        holder = json.loads((tmp_path / "run" / LOCK).read_text())
        assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
        raise RuntimeError
    assert list((tmp_path / "run").iterdir()) == []


def test_the_holder_is_named(tmp_path: Path, sleeper: psutil.Process) -> None:
    lock = held_by(sleeper, tmp_path)
    named = f"belongs to a running job: process {sleeper.pid} on {socket.gethostname()}, since 20"
    with pytest.raises(ClusterError, match=named), claim(tmp_path):
        pass
    assert json.loads(lock.read_text())["pid"] == sleeper.pid


@pytest.mark.parametrize("left", ["gone", "another process", "torn"])
def test_a_stale_lock_of_this_host_is_taken_over(
    left: str, tmp_path: Path, sleeper: psutil.Process
) -> None:
    held_by(sleeper, tmp_path, earlier=1000 if left == "another process" else 0)
    if left == "gone":
        sleeper.kill()
        while sleeper.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    if left == "torn":
        (tmp_path / LOCK).write_text("{")
    with claim(tmp_path, stale=0.1):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_host_is_watched(tmp_path: Path, sleeper: psutil.Process) -> None:
    lock = held_by(sleeper, tmp_path, host="elsewhere")
    refresh = threading.Timer(0.5, os.utime, (lock,))
    refresh.start()
    with pytest.raises(ClusterError, match="on elsewhere"), claim(tmp_path, stale=1):
        pass
    refresh.join()
    started = time.monotonic()
    with claim(tmp_path, stale=1):
        assert time.monotonic() - started >= 1


def test_only_rank_0_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with claim(tmp_path):
        assert list(tmp_path.iterdir()) == []
