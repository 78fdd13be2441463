"""Threads that run ahead: the order stays, errors come in their place, memory is bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from avvp_dist.features.ahead import ahead


def source(number: int, begun: list[int], pause: float = 0.0) -> Iterator[tuple[int, int]]:
    begun.append(number)
    for value in range(5):
        time.sleep(pause)
        yield number, value


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_order_is_that_of_the_sources(threads: int) -> None:
    sources = [source(n, [], pause=0.002 * (n % 2)) for n in range(7)]
    read = [list(values) for values in ahead(sources, threads, 2)]
    assert read == [[(n, value) for value in range(5)] for n in range(7)]


def test_sources_run_at_once() -> None:
    meeting = threading.Barrier(2)

    def meets() -> Iterator[int]:
        yield meeting.wait(5)

    assert sorted(value for values in ahead([meets(), meets()], 2, 1) for value in values) == [0, 1]


def test_an_error_is_raised_where_its_source_is_read() -> None:
    def breaks() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    read = []
    for values in ahead([iter([0]), breaks(), iter([2])], 2, 1):
        try:
            read += list(values)
        except ValueError as error:
            read.append(str(error))
    assert read == [0, "broken", 2]


def test_few_sources_begin_before_they_are_read() -> None:
    begun: list[int] = []
    values = ahead([source(n, begun) for n in range(20)], 2, 2)
    next(values)
    time.sleep(0.1)
    assert sorted(begun) == [0, 1]  # both wait to be read, with two values each


def test_a_reader_may_stop_early() -> None:
    values = ahead([source(n, []) for n in range(20)], 2, 2)
    next(values)
    values.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]
