"""Sections in processes of their own: one that fails, hangs or spoils its GPU ends alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from avvp_dist.errors import first_line
from tools.bench.gpu.rows import Figures, Note, Setting

Run = Callable[[Setting, float], Iterator[Figures | Note]]
"""Runs a section until a time of the monotonic clock; its figures, one after the other."""
_SECONDS_TO_END = 10.0


@dataclass
class Outcome:
    """Result of a section."""

    figures: list[Figures] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Lines about what was left out or failed."""
    failed: bool = False
    ended: bool = False
    """Whether the section came to its end."""


def run_apart(run: Run, setting: Setting, deadline: float, log: Path) -> Outcome:
    """Run a section in a process of its own, which is killed soon after its deadline.

    Args:
        deadline: time of the monotonic clock.
        log: file that receives everything the process prints.
    """
    # A process that has used CUDA cannot fork. On a CPU a fork saves the imports.
    spawn, fork = multiprocessing.get_context("spawn"), multiprocessing.get_context("fork")
    context = spawn if setting.device == "gpu" else fork
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(run, setting, deadline, theirs, log))
    process.start()
    theirs.close()
    outcome = Outcome()
    try:
        while not outcome.ended and ours.poll(
            max(0.0, deadline + _SECONDS_TO_END - time.monotonic())
        ):
            _take(ours.recv(), outcome)
        if not outcome.ended:
            outcome.failed = True
            outcome.notes.append("did not end in its time, and was killed")
    except EOFError:
        process.join(_SECONDS_TO_END)
        outcome.failed = True
        outcome.notes.append(f"its process ended with code {process.exitcode}")
        if outcome.ended:
            process.join(_SECONDS_TO_END)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    return outcome


def _take(row: Figures | Note | None, outcome: Outcome) -> None:
    if row is None:
        outcome.ended = True
    elif isinstance(row, Note):
        outcome.notes.append(row.text)
        outcome.failed |= row.failed
    else:
        outcome.figures.append(row)


def _work(run: Run, setting: Setting, deadline: float, parent: Connection, log: Path) -> None:
    """Run a section in its own process, and send what it finds."""
    os.setsid()  # its own processes, such as pytest, end with it
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(file.fileno(), descriptor)
    try:
        for row in run(setting, deadline):
            parent.send(row)
    except Exception as error:  # whatever the section meets: the others go on
        traceback.print_exc()
        parent.send(Note(f"{type(error).__name__}: {first_line(error)}", failed=True))
    parent.send(None)
