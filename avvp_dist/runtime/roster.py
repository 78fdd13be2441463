"""Ranks of a supervised job: which registered, which run, and how the others ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass
class Rank:
    """A registered process. `code` is the exit code it reported, or the one the kernel gives."""

    number: int
    pid: int
    host: str
    process: psutil.Process | None
    """None on another host, or if it was gone before it was seen."""
    alive: bool = True
    code: int | None = None
    """Exit code; negative: the signal that killed it; None: not known."""
    ended: float = 0.0
    """Seconds since the epoch."""
    told: bool = False
    """Whether a signal was forwarded to it."""
    killed: bool = False
    """Whether the supervisor killed it."""

    @property
    def here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def failed(self) -> bool:
        return not self.alive and self.code != 0

    def __str__(self) -> str:
        return f"rank {self.number} (pid {self.pid}, {self.host})"

    def send(self, number: int) -> None:
        """Send a signal; do nothing if the process has just ended."""
        if self.process is not None:
            with suppress(psutil.Error):
                self.process.send_signal(number)


@dataclass
class Roster:
    """Folder that ranks register in."""

    folder: Path
    ranks: dict[str, Rank] = field(default_factory=dict)

    def refresh(self, reaped: Mapping[int, int]) -> None:
        """Read the folder and update every rank.

        Args:
            reaped: exit codes of the supervisor's children by pid; negative: a signal.
        """
        for file in self.folder.glob("*-*.json"):
            if file.stem not in self.ranks:
                entry = json.loads(file.read_text())
                here = entry["host"] == socket.gethostname()
                process = _process(entry["pid"]) if here else None
                self.ranks[file.stem] = Rank(entry["rank"], entry["pid"], entry["host"], process)
        for name, rank in self.ranks.items():
            if rank.alive:
                self._update(rank, self.folder / f"{name}.end", reaped)

    def living(self) -> list[Rank]:
        """Ranks on this host that still run."""
        return [rank for rank in self.ranks.values() if rank.alive and rank.here]

    def failed(self) -> list[Rank]:
        """Ranks that ended with another exit code than 0."""
        return [rank for rank in self.ranks.values() if rank.failed]

    def _update(self, rank: Rank, end: Path, reaped: Mapping[int, int]) -> None:
        code = None
        if rank.here:
            rank.alive, code = _state(rank.process)
            code = reaped.get(rank.pid, code)
        # A rank reports its exit code just before it ends: then it still runs.
        if end.is_file():
            report = json.loads(end.read_text())
            code, rank.ended = report["code"], report["time"]
            rank.alive = rank.alive and rank.here
        rank.code = code
        if not rank.alive and not rank.ended:
            rank.ended = time.time()


def _process(pid: int) -> psutil.Process | None:
    with suppress(psutil.Error):
        return psutil.Process(pid)
    return None


def _state(process: psutil.Process | None) -> tuple[bool, int | None]:
    """Whether a process runs, and the exit code of a zombie."""
    try:
        if process is None or not process.is_running():
            return False, None
        if process.status() != psutil.STATUS_ZOMBIE:
            return True, None
    except psutil.NoSuchProcess:
        return False, None
    with suppress(OSError):
        # On Linux the last field is the exit status of a process that waits to be reaped.
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return False, os.waitstatus_to_exitcode(int(fields[-1]))
    return False, None


def signal_name(number: int) -> str:
    """Name of a signal, such as SIGKILL for 9, or its number if it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
