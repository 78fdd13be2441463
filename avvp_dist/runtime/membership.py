"""What a process of a supervised job does: take its variables, register, say how it ended.

The supervisor's folder has `HOST-PID.json` for each, and `HOST-PID.end` once it said how it ends.
Nothing here needs more than the standard library: it runs before anything else.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

FOLDER, SUPERVISOR, VARIABLES = "AVVP_SUPERVISED", "AVVP_SUPERVISOR", "AVVP_ENV_FILE"
"""Variables: where to register, the supervisor's pid, the file of what ranks alone get."""

_entry: Path | None = None


def join() -> None:
    """Take the variables that the supervisor left in a file, and register with it.

    Without a supervisor this does nothing. A process that this one starts is no part of the job.

    Raises:
        OSError: with what to do, if the file of variables cannot be read.
    """
    global _entry
    if file := os.environ.pop(VARIABLES, ""):
        try:
            os.environ.update(json.loads(Path(file).read_text()))
        except OSError as error:
            why = f"{error.strerror}. Several hosts need a shared folder: supervise.py --env-dir"
            raise OSError(error.errno, why, file) from None
    folder = os.environ.pop(FOLDER, "")
    if folder and Path(folder).is_dir():  # on another host it may not be
        _entry = Path(folder) / f"{socket.gethostname()}-{os.getpid()}"
        rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
        _write(".json", {"rank": int(rank), "pid": os.getpid(), "host": socket.gethostname()})


def leave(code: int) -> None:
    """Say with which exit code this process ends; the first word counts."""
    if _entry is not None and not _entry.with_name(f"{_entry.name}.end").exists():
        with suppress(OSError):  # the supervisor may be gone
            _write(".end", {"code": code, "time": time.time()})


def _write(ending: str, value: Any) -> None:
    assert _entry is not None
    temporary = _entry.with_name(f".{_entry.name}{ending}")
    temporary.write_text(json.dumps(value))
    temporary.replace(_entry.with_name(_entry.name + ending))
