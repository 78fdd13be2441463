"""One supervisor around any launcher: signals, deadlines, exit codes, and nothing left behind.

Launchers end ranks at once when they are signalled, or leave them running; so signals go past the
launcher to the ranks, which save and end. The supervisor takes in orphans (Linux), so it knows all
processes of the job, whatever dies, and ends them. Elsewhere it knows registered ranks, the
command's process group, and what still descends from it.
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
from avvp_dist.runtime.environment import deepspeed_variables, lay_out, sort
from avvp_dist.runtime.exit_codes import PREEMPTED, judge
from avvp_dist.runtime.roster import Rank, Roster

_TURN = 0.1
"""Seconds between two looks at the job."""
_FOLLOW = 10.0
"""Seconds for the ranks to end after one that failed."""
_LAUNCHERS_TIME = 3.0
"""Seconds for launchers to end other hosts' ranks, when those here are gone."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def supervise(
    command: Sequence[str],
    *,
    grace: float = 30,
    passed: Sequence[str] = (),
    folder: str | None = None,
) -> int:
    """Run a command to its end and the end of all it started; the exit code of the job.

    Args:
        grace: seconds from a signal until nothing is left; ranks have all but the last three.
        passed: more environment variables for the ranks.
        folder: where a private folder is made for the job; with several hosts a shared one.

    Raises:
        ConfigError: if there is no such command or folder.
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
        environment = lay_out(variables, Path(own))
        code, line = job.run([program, *command[1:]], environment, Path(own))
    if line:
        print(f"\nsupervisor: {line}", file=sys.stderr, flush=True)
    return code


class _Job:
    """The processes of one command."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.asked: int = 0
        self.pressed = 0
        """How often Ctrl-C was."""
        self.deadline = float("inf")
        self.reaped: dict[int, int] = {}
        self.orphaned = False
        """The launcher was gone while ranks ran on."""
        for number in _SIGNALS:  # nohup and background jobs ignore some: that stands
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._ask)
        _adopt_orphans()

    def run(
        self, command: list[str], environment: Mapping[str, str], folder: Path
    ) -> tuple[int, str]:
        """Start the command, watch it to its end, leave nothing; exit code and line."""
        self.roster = Roster(folder)
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            while self._goes_on():
                time.sleep(_TURN)
        finally:
            self._clear()
        self.process.returncode = self.reaped.get(self.process.pid, -signal.SIGKILL)
        ranks = list(self.roster.ranks.values())
        return judge(self.process.returncode, ranks, asked=self.asked, orphaned=self.orphaned)

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.asked = self.asked or number
        self.pressed += number == signal.SIGINT

    def _goes_on(self) -> bool:
        """Look at everything once; False when it is time to clear up."""
        self._reap()
        self.roster.refresh(self.reaped)
        self.orphaned |= any(self._is_orphan(rank) for rank in self.roster.ranks.values())
        ended, living = self.process.pid in self.reaped, self.roster.living()
        if ended and not living:
            return False
        if failed := self.roster.failed():
            saved = all(rank.code == PREEMPTED for rank in failed)
            self._limit(self.grace if saved else _FOLLOW)
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
        """Whether a rank came to us: what should be its parent died."""
        if rank.process is None or rank.pid == self.process.pid:
            return False
        with suppress(psutil.Error):
            return rank.pid in self.reaped or rank.process.ppid() == os.getpid()
        return False

    def _limit(self, seconds: float) -> None:
        """Nothing lives longer than `seconds` from now; a nearer limit stands."""
        for_ranks = max(seconds - _LAUNCHERS_TIME, seconds / 2)
        self.deadline = min(self.deadline, time.monotonic() + for_ranks)

    def _forward(self) -> None:
        """Ask the ranks to save and end, those that have just come too; without any, the rest."""
        self._limit(self.grace)
        number = signal.SIGUSR1 if self.asked == signal.SIGUSR1 else signal.SIGTERM
        living = self.roster.living()
        for rank in living:
            if not rank.told:
                rank.told = True
                rank.send(number)
        if not self.roster.ranks:
            self._limit(2 * _LAUNCHERS_TIME)
            for process in self._descendants():
                with suppress(psutil.Error):
                    process.terminate()

    def _end_launchers(self) -> None:
        """Let launchers end what they started on other hosts."""
        until = time.monotonic() + _LAUNCHERS_TIME
        for process in self._descendants():
            with suppress(psutil.Error):
                process.terminate()
        while self.process.pid not in self.reaped and time.monotonic() < until:
            time.sleep(_TURN)
            self._reap()

    def _clear(self) -> None:
        """SIGKILL for all that is left, until nothing is."""
        for rank in self.roster.living():
            rank.send(signal.SIGKILL)
        if not sys.platform.startswith("linux"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        until = time.monotonic() + _LAUNCHERS_TIME
        while (left := self._descendants()) and time.monotonic() < until:
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(_TURN)
            self._reap()
        self._reap()
        self.roster.refresh(self.reaped)

    def _descendants(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process().children(recursive=True)
        return found

    def _reap(self) -> None:
        """Learn how children ended, orphans that came to us included."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self.reaped[pid] = os.waitstatus_to_exitcode(status)


def _adopt_orphans() -> None:
    """Descendants whose parent dies become our children and not init's (Linux)."""
    if sys.platform.startswith("linux"):
        set_child_subreaper = 36  # <linux/prctl.h>
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)
