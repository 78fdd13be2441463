"""Signals that ask a run to end."""

from __future__ import annotations

import os
import signal
from threading import Thread

import pytest

from avvp_dist.runtime.preemption import SIGNALS, Preemption


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_by_name_and_nothing_else_happens(number: signal.Signals) -> None:
    with Preemption() as preemption:
        assert preemption.asked == ""
        os.kill(os.getpid(), number)
        assert preemption.asked == number.name


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ValueError, match="a fault"), Preemption():
        assert [signal.getsignal(number) for number in SIGNALS] != before
        raise ValueError("a fault")
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_another_thread_than_the_main_one_runs_without_handlers() -> None:
    asked = []

    def run() -> None:
        with Preemption() as preemption:
            asked.append(preemption.asked)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    assert asked == [""]
