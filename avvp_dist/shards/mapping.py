"""Files side by side in one range of addresses, so that a batch is one gather over all of them."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

_MAP_FIXED = 0x10
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_MADV_POPULATE_READ = 22
_MEMORY_SPEED = 1e9
"""Bytes a second: what is slower comes from a disk."""
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *3 * [ctypes.c_int], ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Mapping:
    """Room for files of the given `sizes` in bytes; they are mapped into it one by one.

    `starts[n]` is where file n lies in the range. Room without a file costs no memory; reading
    there ends the process, so whoever gathers must know what is mapped.

    Raises:
        OSError: if the addresses cannot be had.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        granule = mmap.ALLOCATIONGRANULARITY
        self._sizes = list(sizes)
        self.starts: NDArray[np.int64] = np.cumsum(
            [0, *(-(-size // granule) * granule for size in sizes)], dtype=np.int64
        )
        self._bytes = max(granule, int(self.starts[-1]))
        self._base = _map(None, self._bytes, -1)
        self._finalizer = weakref.finalize(self, _libc.munmap, self._base, self._bytes)
        # At exit daemon threads may still read here, or map a file at a fixed address.
        self._finalizer.atexit = False
        room = (ctypes.c_uint8 * self._bytes).from_address(self._base)
        self._halves: NDArray[np.float16] = np.ctypeslib.as_array(room).view("<f2")
        self._from_disk = True

    def map(self, number: int, path: Path) -> None:
        """Map the file `path` at its place."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            at = _map(self._base + int(self.starts[number]), self._sizes[number], descriptor)
        finally:
            os.close(descriptor)
        # Else each page that is missed brings megabytes of its neighbours, which nobody wants.
        _libc.madvise(at, self._sizes[number], mmap.MADV_RANDOM)

    def unmap(self, number: int) -> None:
        """Give the file's memory back; its place stays."""
        _map(self._base + int(self.starts[number]), self._sizes[number], -1)

    def populate(self, number: int) -> None:
        """Read a mapped file into memory, from its first byte to its last.

        Raises:
            OSError: if the disk cannot give it.
        """
        at, size = self._base + int(self.starts[number]), self._sizes[number]
        _libc.madvise(at, size, mmap.MADV_SEQUENTIAL)
        failed = _libc.madvise(at, size, _MADV_POPULATE_READ)
        error = ctypes.get_errno()
        _libc.madvise(at, size, mmap.MADV_RANDOM)
        if failed and error != errno.EINVAL:  # a kernel before 5.14 reads when it must
            raise OSError(error, os.strerror(error))

    def gather(
        self, offsets: NDArray[np.integer], count: int, out: NDArray[np.float16] | None = None
    ) -> NDArray[np.float16]:
        """`count` numbers from each of `offsets [B]` (even, in bytes): float16 `[B, count]`.

        One copy, without Python per clip: each item is a void of `2 * count` bytes in an array
        whose items overlap. While that runs at a disk's speed, the disk is told beforehand of all
        that the batch needs, so that it reads many clips at once.
        """
        size, started = 2 * count, time.monotonic()
        if self._from_disk:
            for at in (self._base + offsets).tolist():
                _libc.madvise(
                    at - at % mmap.PAGESIZE, size + at % mmap.PAGESIZE, mmap.MADV_WILLNEED
                )
        if out is not None:
            chosen = self._gather_into(offsets // 2, count, out)
        else:
            chosen = self._gather_new(offsets // 2, count)
        seconds = time.monotonic() - started
        self._from_disk = seconds > 1e-3 + len(offsets) * size / _MEMORY_SPEED
        return chosen

    def _gather_new(self, places: NDArray[np.integer], count: int) -> NDArray[np.float16]:
        size = 2 * count
        items = as_strided(
            self._halves.view(np.uint8)[:size].view(f"V{size}"),
            ((self._bytes - size) // 2 + 1,),
            (2,),
            writeable=False,
        )
        chosen: NDArray[np.float16] = items[places].view("<f2").reshape(len(places), count)
        return chosen

    def _gather_into(
        self, places: NDArray[np.integer], count: int, out: NDArray[np.float16]
    ) -> NDArray[np.float16]:
        import torch  # only training needs it, and it takes seconds

        numbers = torch.from_numpy(self._halves)
        items = numbers.as_strided((len(numbers) - count + 1, count), (1, 1))
        index = torch.from_numpy(places.astype(np.int64, copy=False))
        torch.index_select(items, 0, index, out=torch.from_numpy(out))
        return out


def _map(address: int | None, size: int, descriptor: int) -> int:
    """A read-only mapping of a file, or with descriptor -1 room without memory."""
    flags = mmap.MAP_SHARED if descriptor >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    flags |= (_MAP_FIXED if address is not None else 0) | (_MAP_NORESERVE if descriptor < 0 else 0)
    protection = mmap.PROT_READ if descriptor >= 0 else 0
    found: int | None = _libc.mmap(address, size, protection, flags, descriptor, 0)
    if found is None or found == _FAILED:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return found
