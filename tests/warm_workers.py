"""Ray drivers and workers forked from a process that has imported torch and MLflow once.

A job of the tables or of a study trains in a worker of its own, whose imports take longer than a
small training. Ray starts a worker as `PYTHON default_worker.py ...`, with the driver's Python.
`warm_workers` (tests/conftest.py) gives the driver another one, which asks for a fork. A forked
worker tells Ray its own pid, so that Ray watches, ends and replaces it as any other. The same
Python forks a driver, if its script lies in `tools/`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path

import psutil

from tests.forked_ranks import FIXED, fork_server

PROGRAM = """#!{python} -SE
import json, os, socket, sys
words = sys.argv[1:]
if not words[0].endswith("default_worker.py") and not words[0].startswith("tools/"):
    os.execv({python!r}, [{python!r}, *words])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [b"."], [0, 1, 2])
server.sendall(json.dumps([words, dict(os.environ), os.getcwd()]).encode() + b"\\n")
sys.exit(int(server.makefile().readline() or 1))
"""


class WarmWorkers:
    """The process that Ray's workers are forked from."""

    def __init__(self, folder: Path):
        address, program = folder / "socket", folder / "python"
        program.write_text(PROGRAM.format(python=sys.executable, address=str(address)))
        program.chmod(0o755)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(address))
        listener.listen()
        self._process = fork_server().Process(target=_serve, args=(listener,), daemon=True)
        self._process.start()
        listener.close()
        self.variables = {**FIXED, "WARM_PYTHON": str(program)}
        """Variables of a driver whose workers are to be forked."""

    def processes(self) -> list[psutil.Process]:
        """The workers that run, and the processes that wait for them."""
        assert self._process.pid is not None
        return psutil.Process(self._process.pid).children(recursive=True)

    def end(self) -> None:
        """Fork no more, and end what still runs."""
        for one in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.kill()
        self._process.join()


def _serve(listener: socket.socket) -> None:
    """Fork a process for each connection, until killed."""
    gc.freeze()  # as for ranks
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            _hold(connection)
        connection.close()


def _hold(connection: socket.socket) -> None:
    """Fork the worker that a connection asks for, and tell its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    words, variables, folder = json.loads(connection.makefile().readline())
    pid = os.fork()
    if pid:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(f"{code % 256}\n".encode())
        os._exit(0)
    connection.close()
    os.setsid()  # Ray ends a worker with its whole process group
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.environ.clear()
    os.environ.update(variables)
    sys.executable = variables.get("WARM_PYTHON", sys.executable)
    os.chdir(folder)
    sys.argv = words
    runpy.run_path(sys.argv[0], run_name="__main__")
    os._exit(0)
