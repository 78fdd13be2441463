"""Lock of an output folder: it belongs to one running job."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from avvp_dist.errors import ClusterError
from avvp_dist.runtime.launched import launched_rank

LOCK = "lock.json"
REFRESH = 5.0
"""Seconds between two refreshments of a held lock's file time."""
STALE = 60.0
"""Seconds without a refreshment after which a lock of another host is stale."""


@dataclass(frozen=True)
class Holder:
    """Process that holds a lock."""

    pid: int
    host: str
    started: float
    """Seconds since the epoch. It tells the process from a later one of the same number."""


@contextmanager
def claim(out: Path, *, stale: float = STALE) -> Iterator[None]:
    """Hold `out` for this job. Every rank may call it; rank 0 holds the lock for all.

    A lock of this host is stale when its process is gone. A lock of another host is stale when its
    file time does not change for `stale` seconds, so no two hosts' clocks are compared.

    Raises:
        ClusterError: another job holds the folder; the message names its host, process and start.
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
    # Written first and linked then, so that no lock is ever seen without its holder.
    own = lock.with_name(f".{LOCK}.{socket.gethostname()}.{os.getpid()}")
    own.write_text(json.dumps(asdict(_self())) + "\n")
    try:
        os.link(own, lock)
    except FileExistsError:
        return False
    finally:
        own.unlink()
    return True


def _take_away(lock: Path, stale: float) -> None:
    """Remove a stale lock; do nothing if it is gone.

    Raises:
        ClusterError: its holder runs.
    """
    try:
        holder, seen = _read(lock), lock.stat().st_mtime_ns
    except FileNotFoundError:
        return
    if holder is not None and holder.host == socket.gethostname():
        if _runs(holder):
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
        if _read(aside) != holder:  # another job was as quick and holds it already
            with suppress(FileExistsError):
                os.link(aside, lock)
        aside.unlink()


def _self() -> Holder:
    started = psutil.Process().create_time()
    return Holder(os.getpid(), socket.gethostname(), round(started, 2))


def _read(lock: Path) -> Holder | None:
    """Holder of a lock; None if the file is gone or is no lock."""
    with suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads(lock.read_text()))
    return None


def _runs(holder: Holder) -> bool:
    """Whether the holder runs on this host. Another process may have its number by now."""
    try:
        process = psutil.Process(holder.pid)
        same = abs(process.create_time() - holder.started) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _held(lock: Path, holder: Holder | None) -> ClusterError:
    who = "a process that its lock does not name"
    if holder is not None:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(holder.started))
        who = f"process {holder.pid} on {holder.host}, since {since}"
    return ClusterError(
        f"{lock.parent} belongs to a running job: {who}",
        remedy=f"Wait for it, or choose another trainer.out; if it is gone, remove {lock}",
    )


def _keep_fresh(lock: Path, done: threading.Event) -> None:
    while not done.wait(REFRESH):
        with suppress(OSError):
            os.utime(lock)
