"""A process's side of a supervised job: take its variables, register, report its exit code.

The supervisor's folder has a file `HOST-PID.json` for each process that registered, and
`HOST-PID.end` when the process has reported its exit code. Only the standard library is imported,
because this runs before anything else.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

FOLDER, SUPERVISOR, VARIABLES = "AVVP_SUPERVISED", "AVVP_SUPERVISOR", "AVVP_ENV_FILE"
"""Names of variables: the folder to register in, the supervisor's pid, the ranks' own variables."""

_entry: Path | None = None


def join() -> None:
    """Take the variables that the supervisor left in a file, and register with it.

    Without a supervisor this does nothing. Processes that this one starts do not register.

    Raises:
        OSError: the file of variables cannot be read; the message says what to do.
    """
    global _entry
    if file := os.environ.pop(VARIABLES, ""):
        try:
            os.environ.update(json.loads(Path(file).read_text()))
        except OSError as error:
            why = f"{error.strerror}. Several hosts need a shared folder: supervise.py --env-dir"
            raise OSError(error.errno, why, file) from None
    folder = os.environ.pop(FOLDER, "")
    if folder and Path(folder).is_dir():  # it may be missing on another host
        _entry = Path(folder) / f"{socket.gethostname()}-{os.getpid()}"
        rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
        _write(".json", {"rank": int(rank), "pid": os.getpid(), "host": socket.gethostname()})


def leave(code: int) -> None:
    """Report the exit code with which this process ends. The first report counts."""
    if _entry is not None and not _entry.with_name(f"{_entry.name}.end").exists():
        with suppress(OSError):  # the supervisor may be gone
            _write(".end", {"code": code, "time": time.time()})


def _write(ending: str, value: Mapping[str, object]) -> None:
    assert _entry is not None
    temporary = _entry.with_name(f".{_entry.name}{ending}")
    temporary.write_text(json.dumps(value))
    temporary.replace(_entry.with_name(_entry.name + ending))
