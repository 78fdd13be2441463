"""The ranks of a supervised job: who registered, who lives, and how the others ended."""

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
    """A registered process; `code` is what it said, or what the kernel says, of its end."""

    number: int
    pid: int
    host: str
    process: psutil.Process | None
    """None on another host, or if it was gone before it was seen."""
    alive: bool = True
    code: int | None = None
    """Negative: the signal that killed it. None: nobody saw how it ended."""
    ended: float = 0.0
    """Seconds since the epoch."""
    told: bool = False
    """A signal was forwarded to it."""
    killed: bool = False
    """The supervisor ended it."""

    @property
    def here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def failed(self) -> bool:
        return not self.alive and self.code != 0

    def __str__(self) -> str:
        return f"rank {self.number} (pid {self.pid}, {self.host})"

    def send(self, number: int) -> None:
        """Send a signal; it may just have ended."""
        if self.process is not None:
            with suppress(psutil.Error):
                self.process.send_signal(number)


@dataclass
class Roster:
    """The folder that ranks register in."""

    folder: Path
    ranks: dict[str, Rank] = field(default_factory=dict)

    def refresh(self, reaped: Mapping[int, int]) -> None:
        """Look at the folder and at every rank.

        Args:
            reaped: exit codes of the supervisor's own children, negative for signals.
        """
        for file in self.folder.glob("*-*.json"):
            if file.stem not in self.ranks:
                entry = json.loads(file.read_text())
                here = entry["host"] == socket.gethostname()
                process = _process(entry["pid"]) if here else None
                self.ranks[file.stem] = Rank(entry["rank"], entry["pid"], entry["host"], process)
        for name, rank in self.ranks.items():
            if rank.alive:
                self._look(rank, self.folder / f"{name}.end", reaped)

    def living(self) -> list[Rank]:
        """Ranks on this host that still run."""
        return [rank for rank in self.ranks.values() if rank.alive and rank.here]

    def failed(self) -> list[Rank]:
        """Ranks that ended otherwise than well."""
        return [rank for rank in self.ranks.values() if rank.failed]

    def _look(self, rank: Rank, end: Path, reaped: Mapping[int, int]) -> None:
        code = None
        if rank.here:
            rank.alive, code = _state(rank.process)
            code = reaped.get(rank.pid, code)
        # It may speak before it is gone: what it said is known, but it still runs.
        if end.is_file():
            said = json.loads(end.read_text())
            code, rank.ended = said["code"], said["time"]
            rank.alive = rank.alive and rank.here
        rank.code = code
        if not rank.alive and not rank.ended:
            rank.ended = time.time()


def _process(pid: int) -> psutil.Process | None:
    with suppress(psutil.Error):
        return psutil.Process(pid)
    return None


def _state(process: psutil.Process | None) -> tuple[bool, int | None]:
    """Whether a process runs, and the exit code of one that nobody has waited for yet."""
    try:
        if process is None or not process.is_running():
            return False, None
        if process.status() != psutil.STATUS_ZOMBIE:
            return True, None
    except psutil.NoSuchProcess:
        return False, None
    with suppress(OSError):
        # Linux says with which status a process waits for its parent; nobody else has to be asked.
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return False, os.waitstatus_to_exitcode(int(fields[-1]))
    return False, None


def signal_name(number: int) -> str:
    """SIGKILL for 9; its number where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
