"""An output folder belongs to one running job."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from avvp_dist.errors import ClusterError
from avvp_dist.runtime.launched import launched_rank

LOCK = "lock.json"
REFRESH = 5.0
"""Seconds between two signs of life."""
STALE = 60.0
"""Seconds without one after which a lock of another host counts as left behind."""


@contextmanager
def claim(out: Path, *, stale: float = STALE) -> Iterator[None]:
    """Hold `out` for this job, from any rank: rank 0 does it for all.

    A lock of this host is stale when its process is gone. One of another host is watched for up to
    `stale` seconds, by the file's own times: no two clocks are compared.

    Raises:
        ClusterError: if another job holds it; the line names its host, process and start.
    """
    if launched_rank() != 0:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    lock = out / LOCK
    while not _created(lock):
        _take_away(lock, stale)
    done = threading.Event()
    threading.Thread(target=_keep_fresh, args=(lock, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        release(out)


def release(out: Path) -> None:
    """Remove the lock of `out` if this process holds it."""
    lock = out / LOCK
    if _read(lock) == _self():
        lock.unlink(missing_ok=True)


def _created(lock: Path) -> bool:
    # Written before it appears: nobody meets a lock without its holder.
    own = lock.with_name(f".{LOCK}.{socket.gethostname()}.{os.getpid()}")
    own.write_text(json.dumps(_self()) + "\n")
    try:
        os.link(own, lock)
    except FileExistsError:
        return False
    finally:
        own.unlink()
    return True


def _take_away(lock: Path, stale: float) -> None:
    """Remove a stale lock; return if there is none any more.

    Raises:
        ClusterError: if its holder lives.
    """
    try:
        holder, seen = _read(lock), lock.stat().st_mtime_ns
    except FileNotFoundError:
        return
    if holder.get("host") == socket.gethostname():
        if _lives(holder):
            raise _held(lock, holder)
    else:
        until = time.monotonic() + stale
        while time.monotonic() < until:
            time.sleep(min(REFRESH, stale) / 2)
            try:
                if lock.stat().st_mtime_ns != seen:
                    raise _held(lock, holder)
            except FileNotFoundError:
                return
    aside = lock.with_name(f".{LOCK}.stale.{socket.gethostname()}.{os.getpid()}")
    with suppress(FileNotFoundError):
        lock.replace(aside)
        if _read(aside) != holder:  # someone else was as quick, and already holds it anew
            with suppress(FileExistsError):
                os.link(aside, lock)
        aside.unlink()


def _self() -> dict[str, Any]:
    started = psutil.Process().create_time()
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": round(started, 2)}


def _read(lock: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return dict(json.loads(lock.read_text()))
    return {}


def _lives(holder: dict[str, Any]) -> bool:
    """Whether a process of this host runs; another one may have its number by now."""
    try:
        process = psutil.Process(holder["pid"])
        same = abs(process.create_time() - holder["started"]) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, KeyError):
        return False


def _held(lock: Path, holder: dict[str, Any]) -> ClusterError:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(holder.get("started", 0)))
    return ClusterError(
        f"{lock.parent} belongs to a running job: process {holder.get('pid')} on "
        f"{holder.get('host')}, since {since}",
        remedy=f"Wait for it, or choose another trainer.out; if it is gone, remove {lock}",
    )


def _keep_fresh(lock: Path, done: threading.Event) -> None:
    while not done.wait(REFRESH):
        with suppress(OSError):
            os.utime(lock)
