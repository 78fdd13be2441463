"""Threads that open shards, and that nobody has to wait for at the end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

Work = tuple["Future[None]", Callable[..., None], tuple[Any, ...]]


class OpenerThreads:
    """At most `count` daemon threads: a fetch that hangs must not keep a process from ending, as
    the threads of an executor do."""

    def __init__(self, count: int) -> None:
        self._count, self._threads = count, 0
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()

    def submit(self, call: Callable[..., None], *arguments: Any) -> Future[None]:
        """`call(*arguments)`, some time later; the first that are submitted are begun first."""
        future: Future[None] = Future()
        self._work.put((future, call, arguments))
        if self._threads < self._count:
            self._threads += 1
            threading.Thread(target=_serve, args=(self._work,), name="opener", daemon=True).start()
        return future

    def close(self) -> None:
        """Cancel what is not begun, and end the threads."""
        try:
            while item := self._work.get_nowait():
                item[0].cancel()
        except queue.Empty:
            for _ in range(self._threads):
                self._work.put(None)


def _serve(work: queue.SimpleQueue[Work | None]) -> None:
    while item := work.get():
        _do(*item)
        del item  # what waits must not keep alive whose work it did


def _do(future: Future[None], call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        call(*arguments)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(None)
