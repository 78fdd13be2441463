"""Batches of a clip stream, read ahead in a thread."""

from __future__ import annotations

import math
import queue
import threading
import weakref
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class ClipBatch:
    """One micro-batch as it was read.

    `clips [B]` are clip numbers, `room [B, width]` float16 is the memory of all their streams.
    Empty places of a last batch and clips that cannot be read are not among them; where none is
    left, `count` is 0 and one row of zeros stands in.
    """

    clips: Numbers
    room: Tensor
    layout: Layout
    count: int

    @property
    def streams(self) -> dict[str, Tensor]:
        """Float16 `[B, T, D]` by name, views of the room."""
        return self._views(self.room)

    def to(self, device: torch.device) -> dict[str, Tensor]:
        """The streams on a device, float16 as they are stored, in one transfer."""
        return self._views(self.room.to(device, non_blocking=True))

    def _views(self, room: Tensor) -> dict[str, Tensor]:
        sizes = {name: (self.layout.snippets, dim) for name, dim in self.layout.dims.items()}
        return {
            name: room[:, start : start + math.prod(sizes[name])].unflatten(1, sizes[name])
            for name, start in self.layout.starts.items()
        }


def read_clips(
    data: Mixture, clips: Numbers, room: NDArray[np.float16] | None = None
) -> tuple[ClipBatch, NDArray[np.bool_]]:
    """All of `clips [B]`, and which of them could be read; the others are zeros."""
    if room is None:
        room = np.empty((len(clips), data.layout.width), np.float16)
    _, good = data.read(clips, room)
    return ClipBatch(clips, torch.from_numpy(room), data.layout, len(clips)), good


class Loader:
    """The steps of a stream as tensors, in pinned memory where there is an accelerator.

    Shards are opened ahead of need: those of the next block in block order, of the next batches
    in global order. In block order those that are passed are closed again.

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
        self._free: list[NDArray[np.float16]] = []
        mean = len(data) / sum(len(part.shards) for part in data.sets)
        self._block_clips = stream.block * mean * len(data.sets)
        self._ahead = max(1, config.prefetch, math.ceil(self._block_clips / stream.batch_size))
        self._check_cache()

    def steps(self, first: int, end: int) -> Iterator[list[ClipBatch]]:
        """This rank's micro-batches of the steps `first` to `end`, without the last.

        Raises:
            DataError: for what cannot be read, beyond what the data may lack.
        """
        turn = self._read_in_turn(first, end)
        ready: queue.SimpleQueue[list[ClipBatch] | BaseException | None] = queue.SimpleQueue()
        room, stop = threading.Semaphore(self.config.prefetch), threading.Event()

        def work() -> None:
            try:
                while not stop.is_set():
                    ready.put(next(turn, None))
                    room.acquire()
            except BaseException as error:  # it belongs to whoever waits for the batch
                ready.put(error)

        thread = threading.Thread(target=work, name="loader", daemon=True)
        try:
            if not self.config.prefetch:
                yield from turn
                return
            room.acquire()
            thread.start()
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                room.release()
                yield item
        finally:
            stop.set()
            room.release()
            if thread.ident:
                thread.join(_SECONDS_TO_STOP)  # a fetch may hang for longer
            for part in self.data.sets:
                part.close()

    def read(self, step: int) -> list[ClipBatch]:
        """This rank's micro-batches of one step, read now."""
        return [
            self._read(clips)
            for clips in np.split(self.stream.batch(step), self.stream.gradient_accumulation)
        ]

    def _read(self, clips: Numbers) -> ClipBatch:
        clips = clips[clips != EMPTY]
        read, good = read_clips(self.data, clips, self._room(len(clips)))
        if len(clips) and good.all():
            return read
        if good.any():
            rows = torch.from_numpy(np.flatnonzero(good))
            return replace(read, clips=clips[good], room=read.room[rows], count=int(good.sum()))
        nothing = read.room.new_zeros(1, self.data.layout.width)
        return replace(read, clips=np.zeros(1, np.int64), room=nothing, count=0)

    def _room(self, count: int) -> NDArray[np.float16]:
        """Memory for `count` clips, pinned for an accelerator.

        Fresh memory costs nearly as much as filling it, so it is used again once nobody holds a
        tensor of it; torch does the same for pinned memory, when the device has read it.
        """
        shape = (self._clips, self.data.layout.width)
        if self.pin:
            return torch.empty(shape, dtype=torch.float16, pin_memory=True).numpy()[:count]
        whole = self._free.pop() if self._free else np.empty(shape, np.float16)
        room = whole[:count]
        weakref.finalize(room, self._free.append, whole).atexit = False
        return room

    def _read_in_turn(self, first: int, end: int) -> Iterator[list[ClipBatch]]:
        """Each step's micro-batches, its shards opened `_ahead` steps before."""
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
        """Number of the set and of the shard, of all that this rank's clips of a step are in."""
        clips = self.stream.batch(step)
        found = self.data.shards_of(clips[clips != EMPTY])
        return [(n, int(shard)) for n, owners in enumerate(found) for shard in np.unique(owners)]

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
