"""The shards of a set that are open: fetched if remote, verified once, mapped into memory."""

from __future__ import annotations

import errno
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import DataError, StorageError
from avvp_dist.shards.cache import Cache
from avvp_dist.shards.manifest import Shard
from avvp_dist.shards.mapping import Mapping
from avvp_dist.shards.verification import REMEDY, check_size, verify

Work = tuple["Future[None]", Callable[[], object]]

_THREADS = 8


class OpenShards:
    """Opens shards in background threads, and closes those that no reader holds.

    Args:
        place: the shard set's folder, or its URL together with a `cache`.
        shards: of the set's manifest.
        mode: how `verification.verify` checks a shard.
        cache: for a remote set; None for a local one.
    """

    def __init__(
        self, place: str, shards: Sequence[Shard], mode: str, cache: Cache | None = None
    ) -> None:
        self._place, self._shards, self._mode, self._cache = place, shards, mode, cache
        self._mapping = Mapping([shard.bytes for shard in shards])
        self._futures: dict[int, Future[None]] = {}
        self._open = np.zeros(len(shards), bool)
        self._readers = np.zeros(len(shards), np.int64)
        self._verified: set[int] = set()
        self._lock = threading.Lock()
        self._threads: OpenerThreads | None = None

    @property
    def numbers(self) -> set[int]:
        """Shards that are open or being opened."""
        return set(self._futures)

    @property
    def all_open(self) -> bool:
        """Whether every shard is open."""
        return bool(self._open.all())

    def path(self, number: int) -> Path:
        """File of a shard of a local set."""
        return Path(self._place) / self._shards[number].name

    def prepare(self, numbers: Iterable[int], *, warm: bool = False) -> None:
        """Begin to open shards in the background; with `warm` also read them from the disk."""
        for number in map(int, numbers):
            future = self._future(number)
            threads = self._threads
            if warm and threads is not None:
                threads.submit(partial(self._warm, number, future))

    def open(self, owners: NDArray[np.integer]) -> dict[int, DataError]:
        """Open the shards `owners [B]` and wait for them; returns the errors of those that are bad.

        Raises:
            StorageError: if a shard may be whole, but cannot be fetched or opened now.
        """
        if self._open[owners].all():
            return {}
        needed = np.unique(owners).tolist()
        for number in needed:
            self._future(number)
        errors = {}
        for number in needed:
            error = self._future(number).exception()
            if isinstance(error, DataError) and not isinstance(error, StorageError):
                errors[number] = error
            elif error is not None:
                raise error
        return errors

    @contextmanager
    def held(self, owners: NDArray[np.integer]) -> Iterator[None]:
        """Keep the shards `owners [B]` from being closed by another thread meanwhile."""
        with self._lock:
            np.add.at(self._readers, owners, 1)
        try:
            yield
        finally:
            with self._lock:
                np.subtract.at(self._readers, owners, 1)

    def addresses(
        self, owners: NDArray[np.integer], offsets: NDArray[np.integer], size: int
    ) -> NDArray[np.int64]:
        """Addresses of `size` bytes at `offsets [B]` in the shards `owners [B]`, `[B]`."""
        return self._mapping.addresses(owners, offsets, size)

    def release(self, numbers: Iterable[int]) -> None:
        """Close shards, which frees their memory. A shard that is held stays open."""
        with self._lock:
            for number in map(int, numbers):
                if self._readers[number]:
                    continue
                if number in self._futures and self._futures[number].done():
                    self._futures.pop(number)
                    self._open[number] = False
                    self._mapping.unmap(number)

    def close(self) -> None:
        """End the threads and cancel what is not begun. Open shards stay open."""
        with self._lock:
            if self._threads is not None:
                self._threads.close()
                self._threads = None
            for number in [n for n, future in self._futures.items() if future.cancelled()]:
                self._futures.pop(number)

    def _future(self, number: int) -> Future[None]:
        with self._lock:
            if number not in self._futures:
                if self._threads is None:
                    self._threads = OpenerThreads(min(_THREADS, (os.cpu_count() or 1) + 2))
                    weakref.finalize(self, self._threads.close).atexit = False
                self._futures[number] = self._threads.submit(partial(self._open_shard, number))
            return self._futures[number]

    def _open_shard(self, number: int) -> None:
        shard = self._shards[number]
        for last in (False, True):
            path = self._fetched(number)
            try:
                check_size(shard, path)  # reading the map of a cut file would end the process
                if number not in self._verified:
                    verify(shard, path, self._mode)
                self._mapping.map(number, path)
                self._verified.add(number)
                self._open[number] = True
                return
            except FileNotFoundError:  # another process freed space in the cache just now
                if last:
                    raise DataError(f"shard {path} is missing", remedy=REMEDY) from None
            except StorageError:
                raise
            except DataError:
                if self._cache is None or last:
                    raise
                self._cache.remove(path)  # the copy went bad, not the shard
            except OSError as error:
                if error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE):
                    raise StorageError(f"shard {path} cannot be opened: {error}") from None
                raise DataError(f"shard {path} cannot be read: {error}", remedy=REMEDY) from None

    def _fetched(self, number: int) -> Path:
        if self._cache is None:
            return self.path(number)
        shard = self._shards[number]
        return self._cache.fetch(f"{self._place}/{shard.name}", shard.bytes, shard.sha256)

    def _warm(self, number: int, opened: Future[None]) -> None:
        if opened.exception() is not None:
            return
        try:
            self._mapping.populate(number)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                return  # closed meanwhile, or memory is short: its clips are read when needed
            path = f"{self._place}/{self._shards[number].name}"
            failed: Future[None] = Future()
            failed.set_exception(DataError(f"shard {path} cannot be read: {error}", remedy=REMEDY))
            with self._lock:
                if self._futures.get(number) is opened:  # else it was closed meanwhile
                    self._futures[number] = failed
                    self._open[number] = False


class OpenerThreads:
    """Up to `count` daemon threads, which end with the process even while a fetch hangs.

    The threads of an executor would keep the process from ending.
    """

    def __init__(self, count: int) -> None:
        self._count, self._threads = count, 0
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()

    def submit(self, call: Callable[[], object]) -> Future[None]:
        """Run `call` in one of the threads; calls begin in the order of submission."""
        future: Future[None] = Future()
        self._work.put((future, call))
        if self._threads < self._count:
            self._threads += 1
            threading.Thread(target=_serve, args=(self._work,), name="opener", daemon=True).start()
        return future

    def close(self) -> None:
        """Cancel the calls that are not begun, and end the threads."""
        try:
            while item := self._work.get_nowait():
                item[0].cancel()
        except queue.Empty:
            for _ in range(self._threads):
                self._work.put(None)


def _serve(work: queue.SimpleQueue[Work | None]) -> None:
    while item := work.get():
        _run(*item)
        del item  # a waiting thread must not keep alive the shard set whose shard it opened


def _run(future: Future[None], call: Callable[[], object]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(None)
