"""The GPU of the work that runs now: whether it asked for one, and whether it was given one."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from functools import cache

from avvp_dist.errors import ClusterError


class GpuClaim(Enum):
    """Right of the work that runs now to the first GPU that its process sees."""

    FREE = auto()
    """No task: a process of its own, which takes a GPU where it finds one."""
    NONE = auto()
    """A task that asked for no GPU, or got none."""
    ASKED = auto()
    """A call that asked for a GPU and runs in the process of the job."""
    HELD = auto()
    """A task to which Ray gave a GPU."""


_claim = GpuClaim.FREE  # no context variable: threads of a task share its claim


@contextmanager
def gpu_claim(claim: GpuClaim) -> Iterator[None]:
    """Let `claim` hold as long as the context lasts."""
    global _claim
    before, _claim = _claim, claim
    try:
        yield
    finally:
        _claim = before


def use_gpu(library: str, finds_gpu: Callable[[], bool]) -> bool:
    """Whether the work that runs now computes on the first GPU of this process.

    Args:
        library: name of the library that computes, for messages.
        finds_gpu: whether that library finds a GPU; asked only if the work may use one.

    Raises:
        ClusterError: if Ray gave this task a GPU that the library does not find.
    """
    if _claim is GpuClaim.NONE:
        return False
    if finds_gpu():
        return True
    if _claim is GpuClaim.HELD:
        raise ClusterError(
            f"{library} finds no GPU on {socket.gethostname()}, although Ray gave its task one",
            remedy=f"Install the driver and a GPU build of {library} there, or set gpus=0",
        )
    if _claim is GpuClaim.ASKED:
        _say_none(library)
    return False


@cache
def _say_none(library: str) -> None:
    print(f"{library} finds no GPU on this host: it computes on the CPU", file=sys.stderr)
