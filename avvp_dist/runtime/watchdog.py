"""Heartbeat of each rank on disk, and the end of a job whose ranks no longer move."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import psutil

from avvp_dist.errors import ClusterError
from avvp_dist.runtime import membership
from avvp_dist.runtime.lock import release
from avvp_dist.runtime.membership import SUPERVISOR
from avvp_dist.runtime.ranks import Ranks

FOLDER = "ranks"
"""Folder within a run's: the heartbeat of each rank, and the stacks of a hung one."""
_SECONDS_BETWEEN_LOOKS = 0.5
_NAMED = 8
"""Maximum number of ranks named in an error."""
_SECONDS_FOR_FIRST_STEP = 120.0
"""Minimum patience until the first step is done, in which libraries and kernels are loaded."""
_SECONDS_FOR_ORPHANS = 30.0
"""Time for a rank without a launcher to save."""


@dataclass
class Heartbeat:
    """State of a rank. All ranks beat equally often, so those with the fewest beats are behind."""

    rank: int
    host: str
    pid: int
    step: int = 0
    doing: str = "starting"
    beats: int = 0
    idle: float = 0.0
    """Seconds since the last beat, when this was written."""
    time: float = 0.0
    """Seconds since the epoch."""
    ended: bool = False


class Watchdog:
    """Thread that writes this rank's heartbeat, and reads those of all ranks when it stalls.

    When no rank has moved for `seconds` (0: never), every rank writes its stacks, one prints a line
    that names those behind, and all end with the exit code of `ClusterError`. A rank whose launcher
    died sends itself SIGTERM.
    """

    def __init__(self, out: Path, ranks: Ranks, seconds: float) -> None:
        self.out, self.folder, self.size, self.seconds = out, out / FOLDER, ranks.size, seconds
        self.own = Heartbeat(ranks.rank, socket.gethostname(), os.getpid())
        # Long enough that a shared file system is not flooded by many ranks.
        self.interval = min(max(seconds / 60, _SECONDS_BETWEEN_LOOKS), 10) if seconds else 10
        self._beaten = time.monotonic()
        self._done = threading.Event()
        self._launchers = _launchers()

    def __enter__(self) -> Watchdog:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stacks = self._stacks_of(self.own.rank).open("w")
        # A rank that is stopped or stuck in C writes its stacks once it is continued.
        faulthandler.register(signal.SIGUSR2, self._stacks, all_threads=True)
        self._since = self._stacks_of(self.own.rank).stat().st_mtime
        self._write()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self.own.ended = error is None
        self.own.doing = "ended" if error is None else f"ended by {type(error).__name__}"
        self._write()
        faulthandler.unregister(signal.SIGUSR2)
        self._stacks.close()
        stacks = self._stacks_of(self.own.rank)
        if stacks.stat().st_size == 0:
            stacks.unlink()

    def beat(self, step: int, doing: str) -> None:
        """Record that this rank has reached `step`, and what it is `doing` there."""
        self.own.step, self.own.doing = step, doing
        self.own.beats += 1
        self._beaten = time.monotonic()

    def _watch(self) -> None:
        written = looked = time.monotonic()
        while not self._done.wait(_SECONDS_BETWEEN_LOOKS):
            now = time.monotonic()
            if now - looked > 4 * self.interval:
                self._beaten = now  # it was stopped itself, so the others may have moved
            looked = now
            if now - written >= self.interval:
                self._write()
                written = now
            if self._launchers and _lost(self._launchers):
                self._launchers = []
                self._end_as_orphan()
            if self.seconds and now - self._beaten > self._patience():
                self._write()
                if behind := self._behind():
                    self._report(behind)

    def _patience(self) -> float:
        return self.seconds if self.own.beats > 1 else max(self.seconds, _SECONDS_FOR_FIRST_STEP)

    def _write(self) -> None:
        """Replace the heartbeat's file. It is not synced, because no later run needs it."""
        self.own.idle, self.own.time = time.monotonic() - self._beaten, time.time()
        file = self._file_of(self.own.rank)
        temporary = file.with_name(f".{file.name}")
        with suppress(OSError):  # a full disk is reported by what must be written
            temporary.write_text(json.dumps(asdict(self.own)) + "\n")
            temporary.replace(file)

    def _behind(self) -> Sequence[tuple[Heartbeat, bool]]:
        """Ranks that hold up the others, and whether each runs; empty if any rank moves."""
        all_ranks = [self._read(rank) for rank in range(self.size)]
        unfinished = [(one, runs) for one, runs in all_ranks if not one.ended]
        if any(runs and one.idle < self._patience() for one, runs in unfinished):
            return []
        if stopped := [(one, runs) for one, runs in unfinished if not runs]:
            return stopped
        fewest = min(one.beats for one, _ in unfinished)
        return [(one, runs) for one, runs in unfinished if one.beats == fewest]

    def _read(self, rank: int) -> tuple[Heartbeat, bool]:
        """Heartbeat of a rank, and whether it is recent by its file's time.

        Only times of files are compared, because hosts' clocks differ.
        """
        try:
            file = self._file_of(rank)
            heartbeat = Heartbeat(**json.loads(file.read_text()))
            written = file.stat().st_mtime
            # A file of an earlier job in this folder says nothing of this one's end.
            heartbeat.ended = heartbeat.ended and written >= self._since
            now = self._file_of(self.own.rank).stat().st_mtime
            return heartbeat, now - written < 4 * self.interval
        except (OSError, ValueError, TypeError):
            return Heartbeat(rank, "unknown host", 0, doing="nothing that was written"), False

    def _report(self, behind: Sequence[tuple[Heartbeat, bool]]) -> None:
        faulthandler.dump_traceback(self._stacks, all_threads=True)
        asked = []
        for one, runs in behind:
            if not runs and one.host == self.own.host:
                with suppress(psutil.Error):
                    process = psutil.Process(one.pid)
                    if process.create_time() < one.time:  # else another process has its number
                        process.send_signal(signal.SIGUSR2)
                        process.send_signal(signal.SIGCONT)
                        asked.append(self._stacks_of(one.rank))
        not_running = {one.rank for one, runs in behind if not runs}
        speaker = min((r for r in range(self.size) if r not in not_running), default=0)
        if self.own.rank == speaker:
            _await_written(asked)
            error = self._error(behind)
            print(f"\nerror: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(5)  # a launcher ends all when the first one leaves
        self._exit()

    def _error(self, behind: Sequence[tuple[Heartbeat, bool]]) -> ClusterError:
        named = "; ".join(
            f"rank {one.rank} ({one.host}, process {one.pid}"
            f"{'' if runs else ', stopped or gone'}) at step {one.step}, {one.doing}"
            for one, runs in behind[:_NAMED]
        )
        if len(behind) > _NAMED:
            named += f"; and {len(behind) - _NAMED} more"
        return ClusterError(
            f"no rank has moved for {self._patience():g} s, behind are: {named}",
            remedy=f"Stacks are in {self._stacks_of(behind[0][0].rank)} and beside it; "
            "trainer.hang_seconds says how long to wait",
        )

    def _exit(self) -> None:
        """End the process from this thread, because its main thread is stuck."""
        if self.own.rank == 0:
            release(self.out)
        membership.leave(ClusterError.exit_code)
        sys.stdout.flush()
        os._exit(ClusterError.exit_code)

    def _end_as_orphan(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        exit_ = threading.Timer(_SECONDS_FOR_ORPHANS, self._exit)
        exit_.daemon = True
        exit_.start()

    def _file_of(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.json"

    def _stacks_of(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.stacks"


def _launchers() -> list[psutil.Process]:
    """This process and its ancestors up to the one that started or supervises the ranks.

    DeepSpeed starts ranks from a process of its own, torchrun from itself. The shell above them is
    left out, because under nohup it may end before the job.
    """
    line = [psutil.Process(), *psutil.Process().parents()]
    depth = 2 if "CROSS_SIZE" in os.environ else int("TORCHELASTIC_RUN_ID" in os.environ)
    supervisor = int(os.environ.get(SUPERVISOR, "0"))
    for above, process in enumerate(line):
        if process.pid == supervisor:
            depth = above
    return line[: depth + 1] if depth else []


def _await_written(files: Sequence[Path]) -> None:
    """Wait until files have stopped growing: a second at least, four at most."""
    sizes = [0] * len(files)
    for _ in range(4):
        time.sleep(1)
        before, sizes = sizes, [file.stat().st_size for file in files if file.is_file()]
        if all(sizes) and sizes == before:
            return


def _lost(line: Sequence[psutil.Process]) -> bool:
    """Whether one of the processes has another parent than it had at the start."""
    try:
        return any(child.ppid() != parent.pid for child, parent in pairwise(line))
    except psutil.Error:
        return True
