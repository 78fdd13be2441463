"""Iterables that threads run ahead in, so that a GPU never waits for the decoding of a file."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Full, Queue
from threading import Event
from typing import Generic, TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS = 0.1
_SOURCES_PER_THREAD = 2
"""Sources per thread that have begun and are not read yet, which bounds the memory."""


def ahead(
    sources: Sequence[Iterable[T]], threads: int, held: int
) -> Generator[Iterator[T], None, None]:
    """Iterators over `sources`, one after the other, while threads run ahead in the next ones.

    Each must be read to its end, or until it raises what its source raised, before the next.

    Args:
        threads: sources that run at once; 0: each runs as it is read.
        held: values of each source that wait to be read, at most.
    """
    if threads == 0:
        yield from map(iter, sources)
        return
    stop = Event()
    waiting: deque[_Ahead[T]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            for source in sources:
                waiting.append(_Ahead(source, held, stop))
                pool.submit(waiting[-1].fill)
                if len(waiting) == threads * _SOURCES_PER_THREAD:
                    yield iter(waiting.popleft())
            while waiting:
                yield iter(waiting.popleft())
        finally:
            stop.set()  # for a reader that has stopped early


class _Ahead(Generic[T]):
    """A source that a thread puts into a queue, from which it is read."""

    def __init__(self, source: Iterable[T], held: int, stop: Event) -> None:
        self._source, self._stop = source, stop
        self._queue: Queue[T | _Ended] = Queue(held)

    def fill(self) -> None:
        """Run the source to its end; the work of a thread."""
        error: BaseException | None = None
        try:
            if self._stop.is_set():
                return
            for value in self._source:
                if not self._put(value):
                    return
        except BaseException as raised:  # whatever it is, it is raised where values are read
            error = raised
        self._put(_Ended(error))

    def __iter__(self) -> Iterator[T]:
        while not isinstance(value := self._queue.get(), _Ended):
            yield value
        if value.error is not None:
            raise value.error

    def _put(self, value: T | _Ended) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(value, timeout=_SECONDS_BETWEEN_LOOKS)
            except Full:
                continue
            return True
        return False


class _Ended:
    """End of a source, and what it raised."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
