"""Batches of a clip stream, read ahead in a thread."""

from __future__ import annotations

import math
import queue
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.config import LoaderConfig
from avvp_dist.errors import ConfigError
from avvp_dist.loading.mixture import Mixture
from avvp_dist.loading.order import Numbers
from avvp_dist.loading.stream import EMPTY, ClipStream
from avvp_dist.shards.layout import Layout

_SECONDS_TO_STOP = 5.0
T = TypeVar("T")


@dataclass(frozen=True)
class ClipBatch:
    """One micro-batch as it was read.

    `clips [B]` are clip numbers, and `places [B]` their places in the rank's micro-batch,
    ascending. `buffer [B, width]` is memory that holds all their streams, in the dtype of the shard
    sets. The empty places of a last batch and clips that cannot be read are left out. If none is
    left, `count` is 0, and one row of zeros stands in, at no place (`EMPTY`).
    """

    clips: Numbers
    places: Numbers
    buffer: Tensor
    layout: Layout
    count: int

    def first(self, clips: int) -> ClipBatch:
        """The first rows of the batch, `clips` at most."""
        rows, count = slice(clips), min(clips, self.count)
        return ClipBatch(self.clips[rows], self.places[rows], self.buffer[rows], self.layout, count)

    @property
    def streams(self) -> dict[str, Tensor]:
        """Features by stream, `[B, T, D]`, as views of the buffer."""
        return self.layout.views(self.buffer)


def read_clips(
    data: Mixture, clips: Numbers, buffer: NDArray[np.floating] | None = None
) -> tuple[ClipBatch, NDArray[np.bool_]]:
    """A batch of all `clips [B]`, and which could be read, `[B]`; the rows of others are zeros.

    Args:
        buffer: memory `[B, layout.width]` to read into; by default fresh memory.
    """
    if buffer is None:
        buffer = data.layout.empty(len(clips))
    good = data.read_into(buffer, clips)
    places = np.arange(len(clips))
    return ClipBatch(clips, places, torch.from_numpy(buffer), data.layout, len(clips)), good


class Loader:
    """Steps of a stream as tensors, in pinned memory if there is an accelerator.

    Shards are opened before they are needed: in block order those of the next block, in global
    order those of the next batches. In block order, shards are closed after their block.

    Raises:
        ConfigError: if the cache cannot hold the remote shards that are needed at once.
    """

    def __init__(
        self,
        data: Mixture,
        stream: ClipStream,
        config: LoaderConfig,
        device: torch.device,
    ) -> None:
        self.data, self.stream, self.config = data, stream, config
        self.pin = device.type != "cpu"
        self._clips = stream.batch_size // stream.world_size // stream.gradient_accumulation
        self._free: list[NDArray[np.floating]] = []
        mean = len(data) / sum(len(part.shards) for part in data.sets)
        self._block_clips = stream.block * mean * len(data.sets)
        self._ahead = max(1, config.prefetch, math.ceil(self._block_clips / stream.batch_size))
        self._check_cache()

    def steps(self, first: int, end: int) -> Iterator[list[ClipBatch]]:
        """This rank's micro-batches, step by step from `first` to `end`, without the last.

        Raises:
            DataError: for more unreadable clips than `data.max_bad_fraction` allows.
        """
        return self.prepared(first, end, lambda _, clips: clips)

    def prepared(
        self, first: int, end: int, prepare: Callable[[int, list[ClipBatch]], T]
    ) -> Generator[T, None, None]:
        """Results of `prepare` for each step and its micro-batches, in the thread that reads them.

        Raises:
            DataError: as `steps` does.
        """
        batches = (
            prepare(step, clips) for step, clips in enumerate(self._read_in_turn(first, end), first)
        )
        ready: queue.SimpleQueue[T | BaseException | None] = queue.SimpleQueue()
        slots, stop = threading.Semaphore(self.config.prefetch), threading.Event()

        def work() -> None:
            try:
                while not stop.is_set():
                    ready.put(next(batches, None))
                    slots.acquire()
            except BaseException as error:  # raised where the batch is waited for
                ready.put(error)

        thread = threading.Thread(target=work, name="loader", daemon=True)
        try:
            if not self.config.prefetch:
                yield from batches
                return
            slots.acquire()
            thread.start()
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                slots.release()
                yield item
        finally:
            stop.set()
            slots.release()
            if thread.ident:
                thread.join(_SECONDS_TO_STOP)  # a fetch may hang for longer, in a daemon thread
            for part in self.data.sets:
                part.close()

    def read(self, step: int) -> list[ClipBatch]:
        """Read this rank's micro-batches of one step now."""
        return [
            self._read(clips)
            for clips in np.split(self.stream.batch(step), self.stream.gradient_accumulation)
        ]

    def _read(self, clips: Numbers) -> ClipBatch:
        places = np.flatnonzero(clips != EMPTY)
        batch, good = read_clips(self.data, clips[places], self._buffer(len(places)))
        batch = replace(batch, places=places)
        if len(places) and good.all():
            return batch
        if good.any():
            rows = batch.buffer[torch.from_numpy(np.flatnonzero(good))]
            return ClipBatch(batch.clips[good], places[good], rows, batch.layout, int(good.sum()))
        nothing = batch.buffer.new_zeros(1, self.data.layout.width)
        return ClipBatch(np.zeros(1, np.int64), np.full(1, EMPTY), nothing, batch.layout, 0)

    def _buffer(self, count: int) -> NDArray[np.floating]:
        """Memory for `count` clips, pinned for an accelerator.

        Fresh memory costs nearly as much as filling it. So memory is used again as soon as no
        tensor refers to it. Torch does the same for pinned memory after the device has read it.
        """
        layout = self.data.layout
        if self.pin:
            shape, dtype = (self._clips, layout.width), getattr(torch, layout.dtype)
            return torch.empty(shape, dtype=dtype, pin_memory=True).numpy()[:count]
        whole = self._free.pop() if self._free else layout.empty(self._clips)
        buffer = whole[:count]
        weakref.finalize(buffer, self._free.append, whole).atexit = False
        return buffer

    def _read_in_turn(self, first: int, end: int) -> Iterator[list[ClipBatch]]:
        """Micro-batches of each step, with shards opened `_ahead` steps before."""
        uses: Counter[tuple[int, int]] = Counter()
        window: deque[list[tuple[int, int]]] = deque()
        for step in range(first, end):
            if not self.stream.block and all(part.all_open for part in self.data.sets):
                yield self.read(step)
                continue
            while len(window) <= self._ahead and step + len(window) < end:
                needed = self._shards(step + len(window))
                for number, shard in needed:
                    if not uses[number, shard]:
                        part = self.data.sets[number]
                        part.prepare([shard], warm=self.stream.block > 0)
                uses.update(needed)
                window.append(needed)
            yield self.read(step)
            passed = window.popleft()
            uses.subtract(passed)
            if self.stream.block:
                for number, shard in passed:
                    if not uses[number, shard]:
                        self.data.sets[number].release([shard])

    def _shards(self, step: int) -> list[tuple[int, int]]:
        """Shards that hold this rank's clips of a step, as numbers of the set and of the shard."""
        clips = self.stream.batch(step)
        by_set = self.data.shards_of(clips[clips != EMPTY])
        return [(n, int(shard)) for n, owners in enumerate(by_set) for shard in np.unique(owners)]

    def _check_cache(self) -> None:
        remote = [part for part in self.data.sets if part.remote]
        sizes = [shard.bytes for part in remote for shard in part.shards]
        needed = sum(sizes)
        if self.stream.block and sizes:
            window = (self._ahead + 1) * self.stream.batch_size
            blocks = math.ceil(window / self._block_clips) + 1
            needed = min(needed, blocks * self.stream.block * len(remote) * max(sizes))
        if needed > self.config.cache_gib * 2**30:
            raise ConfigError(
                f"data.cache_gib={self.config.cache_gib:g} is too small: data.order="
                f"{self.config.order} needs {needed / 2**30:.3g} GiB of {len(sizes)} remote shards "
                "at once",
                remedy="Raise it, set data.order=block, or lower data.block_shards",
            )
