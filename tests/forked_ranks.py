"""Ranks forked from a process that has imported torch and DeepSpeed once.

A launch by `deepspeed` imports them in four processes, which takes longer than the training of most
tests. Where a test is not about the launcher, `fork_ranks` (tests/conftest.py) starts its ranks
from here. As under DeepSpeed, a rank that fails ends the others with SIGTERM, and the job has its
exit code.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import connection, forkserver
from pathlib import Path
from unittest import mock

import psutil

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    *("torch", "deepspeed", "mlflow", "matplotlib.pyplot", "omegaconf", "faiss"),
    *("torch._dynamo", "matplotlib.backends.backend_agg", "psutil", "unittest.mock"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.pyfunc", "pandas"),
    "deepspeed.runtime.zero.muon.muon_optimizer",  # ZeRO's, and with it all of torch._inductor
)
"""Nothing of ours: each rank imports that itself, so what it imports can be tested."""
PATHS = [str(ROOT / "tests" / "startup"), *filter(None, [os.environ.get("PYTHONPATH")])]
FIXED = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(PATHS),
}
"""Variables that torch, DeepSpeed and Python itself read at their start."""

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""Variables that tell a rank from the others."""


class Job:
    """The ranks of a script, used like a `subprocess.Popen` with pipes."""

    def __init__(self, words: Sequence[str], variables: Mapping[str, str], ranks: int, log: Path):
        self.words = list(words)
        self._printed = (log.with_suffix(".out"), log.with_suffix(".err"))
        arguments = (self.words, dict(variables), ranks, [str(file) for file in self._printed])
        self._process = fork_server().Process(target=_launch, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        """Process whose children are the ranks, in order."""

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code, or None while the job runs."""
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end; output and errors of all ranks.

        Raises:
            subprocess.TimeoutExpired: if the job still runs after `timeout` seconds.
        """
        self._process.join(timeout)
        out, err = (file.read_text(errors="replace") for file in self._printed)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.words, timeout, out, err)
        return out, err

    def kill(self) -> None:
        """SIGKILL for the ranks and the process above them."""
        if self.poll() is None:
            for child in psutil.Process(self.pid).children(recursive=True):
                child.kill()
            self._process.kill()
            self._process.join()


def fork_server() -> multiprocessing.context.ForkServerContext:
    """The fork server, started if it does not run yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    with mock.patch.dict(os.environ, FIXED):
        forkserver.ensure_running()
    return context


def _launch(words: list[str], variables: dict[str, str], ranks: int, printed: list[str]) -> None:
    """Fork the ranks and end as the first one that fails."""
    gc.freeze()  # or each rank would copy all that was imported, to look for garbage in it
    for descriptor, file in enumerate(printed, start=1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    fork = multiprocessing.get_context("fork")
    running = [fork.Process(target=_rank, args=(words, variables, n, ranks)) for n in range(ranks)]
    for rank in running:
        rank.start()
    code = 0
    while running:
        connection.wait([rank.sentinel for rank in running])
        for rank in [one for one in running if one.exitcode is not None]:
            running.remove(rank)
            if rank.exitcode and not code:
                code = rank.exitcode % 256
                for other in running:
                    other.terminate()  # it may have ended by itself just now
    sys.exit(code)


def _rank(words: list[str], variables: dict[str, str], rank: int, ranks: int) -> None:
    """Run the script as this rank, in the environment that a launcher would give it."""
    number, size = str(rank), str(ranks)
    os.environ.clear()
    os.environ.update(RANK=number, LOCAL_RANK=number, WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    os.environ.update(variables)
    sys.argv = [words[0], f"--local_rank={rank}", *words[1:]]
    os.chdir(ROOT)
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    runpy.run_path(words[0], run_name="__main__")
