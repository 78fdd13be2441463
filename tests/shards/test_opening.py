"""Opening of shards: in order, with their errors, and never in the way of the process's end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from functools import partial

import pytest

from avvp_dist.shards.opening import OpenerThreads


def test_calls_begin_in_order_in_few_threads() -> None:
    openers, begun, running, maximum = OpenerThreads(3), [], set(), [0]

    def work(number: int) -> None:
        begun.append(number)
        running.add(number)
        maximum[0] = max(maximum[0], len(running))
        time.sleep(0.005)
        running.discard(number)

    for future in [openers.submit(partial(work, number)) for number in range(30)]:
        future.result(10)
    assert sorted(begun) == list(range(30)) and begun[0] == 0
    assert 1 <= maximum[0] <= 3


def test_an_error_belongs_to_its_future_alone() -> None:
    openers = OpenerThreads(1)
    failed, fine = openers.submit(partial(int, "x")), openers.submit(partial(int, "1"))
    assert isinstance(failed.exception(10), ValueError)
    assert fine.exception(10) is None


def test_closing_cancels_calls_that_have_not_begun() -> None:
    openers, gate = OpenerThreads(1), threading.Event()
    first = openers.submit(gate.wait)
    while not first.running():
        time.sleep(0.001)
    second = openers.submit(gate.wait)
    openers.close()
    gate.set()
    assert first.exception(10) is None
    with pytest.raises(CancelledError):
        second.result(10)


def test_a_process_ends_while_an_opener_hangs() -> None:
    program = (
        "import time\nfrom avvp_dist.shards.opening import OpenerThreads\n"
        "OpenerThreads(2).submit(lambda: time.sleep(600))\ntime.sleep(0.2)"
    )
    subprocess.run([sys.executable, "-c", program], timeout=30, check=True)
