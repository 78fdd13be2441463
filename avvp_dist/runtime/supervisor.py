"""Supervisor of any launcher: signals, deadlines, exit codes, and no process left behind.

A launcher that is signalled ends its ranks at once, or leaves them running. So the supervisor
sends signals past the launcher to the ranks, which save and end. On Linux orphans become its
children, so it can end all processes of a job whatever dies. Elsewhere it knows the registered
ranks, the command's process group, and its own descendants.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from avvp_dist.errors import ConfigError
from avvp_dist.runtime.environment import deepspeed_variables, sort, write_variables
from avvp_dist.runtime.exit_codes import PREEMPTED, judge
from avvp_dist.runtime.roster import Rank, Roster

_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_AFTER_A_FAILURE = 10.0
"""Time for the other ranks to end when one has failed."""
_SECONDS_FOR_LAUNCHERS = 3.0
"""Time for launchers to end ranks on other hosts, when those of this host are gone."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def supervise(
    command: Sequence[str],
    *,
    grace: float = 30,
    passed: Sequence[str] = (),
    folder: str | None = None,
) -> int:
    """Run a command until it and all that it started have ended; return the job's exit code.

    Args:
        grace: seconds from a signal until every process is gone; ranks have all but the last 3 s.
        passed: names of more environment variables for the ranks.
        folder: place for the job's private folder; with several hosts one that they share.

    Raises:
        ConfigError: there is no such command or folder.
    """
    program = shutil.which(command[0]) or shutil.which(
        command[0], path=str(Path(sys.executable).parent)
    )
    if program is None:
        raise ConfigError(f"{command[0]}: no such command")
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"--env-dir {folder}: no such folder")
    variables = sort(os.environ, passed, deepspeed_variables(os.environ))
    job = _Job(grace)
    with tempfile.TemporaryDirectory(prefix="avvp-", dir=folder, ignore_cleanup_errors=True) as own:
        environment = write_variables(variables, Path(own))
        code, line = job.run([program, *command[1:]], environment, Path(own))
    if line:
        print(f"\nsupervisor: {line}", file=sys.stderr, flush=True)
    return code


class _Job:
    """Processes of one command."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.asked: int = 0
        self.pressed = 0
        """Number of Ctrl-C presses."""
        self.deadline = float("inf")
        self.reaped: dict[int, int] = {}
        self.orphaned = False
        """Whether the launcher was gone while ranks ran on."""
        for number in _SIGNALS:  # those that nohup or a shell told us to ignore stay ignored
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._ask)
        _become_subreaper()

    def run(
        self, command: list[str], environment: Mapping[str, str], folder: Path
    ) -> tuple[int, str]:
        """Run the command and end all it started; exit code, and the line that says why."""
        self.roster = Roster(folder)
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            while self._goes_on():
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            self._clear()
        self.process.returncode = self.reaped.get(self.process.pid, -signal.SIGKILL)
        ranks = list(self.roster.ranks.values())
        return judge(self.process.returncode, ranks, asked=self.asked, orphaned=self.orphaned)

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.asked = self.asked or number
        self.pressed += number == signal.SIGINT

    def _goes_on(self) -> bool:
        """Look at all processes once; False when it is time to clear up."""
        self._reap()
        self.roster.refresh(self.reaped)
        self.orphaned |= any(self._is_orphan(rank) for rank in self.roster.ranks.values())
        ended, living = self.process.pid in self.reaped, self.roster.living()
        if ended and not living:
            return False
        if failed := self.roster.failed():
            saved = all(rank.code == PREEMPTED for rank in failed)
            self._limit(self.grace if saved else _SECONDS_AFTER_A_FAILURE)
        elif ended:
            self.orphaned = True
        if self.asked or self.orphaned:
            self._forward()
        if time.monotonic() < self.deadline and self.pressed < 2:
            return True
        for rank in living:
            rank.killed = True
            rank.send(signal.SIGKILL)
        if not ended:
            self._end_launchers()
        return False

    def _is_orphan(self, rank: Rank) -> bool:
        """Whether a rank has become our child because its parent died."""
        if rank.process is None or rank.pid == self.process.pid:
            return False
        with suppress(psutil.Error):
            return rank.pid in self.reaped or rank.process.ppid() == os.getpid()
        return False

    def _limit(self, seconds: float) -> None:
        """Set the deadline of all processes to `seconds` from now, unless it is nearer."""
        for_ranks = max(seconds - _SECONDS_FOR_LAUNCHERS, seconds / 2)
        self.deadline = min(self.deadline, time.monotonic() + for_ranks)

    def _forward(self) -> None:
        """Ask ranks that were not asked yet to save and end. Without ranks, ask all descendants."""
        self._limit(self.grace)
        number = signal.SIGUSR1 if self.asked == signal.SIGUSR1 else signal.SIGTERM
        living = self.roster.living()
        for rank in living:
            if not rank.told:
                rank.told = True
                rank.send(number)
        if not self.roster.ranks:
            self._limit(2 * _SECONDS_FOR_LAUNCHERS)
            for process in self._descendants():
                with suppress(psutil.Error):
                    process.terminate()

    def _end_launchers(self) -> None:
        """Ask launchers to end their ranks on other hosts, and wait for them."""
        until = time.monotonic() + _SECONDS_FOR_LAUNCHERS
        for process in self._descendants():
            with suppress(psutil.Error):
                process.terminate()
        while self.process.pid not in self.reaped and time.monotonic() < until:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            self._reap()

    def _clear(self) -> None:
        """Send SIGKILL to all processes that are left, until none is."""
        for rank in self.roster.living():
            rank.send(signal.SIGKILL)
        if not sys.platform.startswith("linux"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        until = time.monotonic() + _SECONDS_FOR_LAUNCHERS
        while (left := self._descendants()) and time.monotonic() < until:
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            self._reap()
        self._reap()
        self.roster.refresh(self.reaped)

    def _descendants(self) -> list[psutil.Process]:
        processes: list[psutil.Process] = psutil.Process().children(recursive=True)
        return processes

    def _reap(self) -> None:
        """Note the exit codes of children, former orphans included."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self.reaped[pid] = os.waitstatus_to_exitcode(status)


def _become_subreaper() -> None:
    """Make orphaned descendants children of this process, and not of init (Linux)."""
    if sys.platform.startswith("linux"):
        set_child_subreaper = 36  # <linux/prctl.h>
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)
