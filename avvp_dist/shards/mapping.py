"""Files mapped into memory, and copies of equal size gathered from them without Python per clip."""

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
from numpy.typing import NDArray

_MAP_FIXED = 0x10
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_MADV_POPULATE_READ = 22
_MEMORY_SPEED = 1e9
"""Bytes per second; a slower copy comes from a disk."""
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *3 * [ctypes.c_int], ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Mapping:
    """One range of addresses for files of the given `sizes` in bytes, which are mapped one by one.

    Addresses without a file cost no memory. Reading there ends the process, so a caller must
    know which files are mapped.

    Raises:
        OSError: if the system has no range of that length.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        granule = mmap.ALLOCATIONGRANULARITY
        self._sizes = np.array(sizes, np.int64)
        starts = np.cumsum([0, *(-(-size // granule) * granule for size in sizes)], dtype=np.int64)
        length = max(granule, int(starts[-1]))
        base = _map(None, length, -1)
        self._starts = base + starts
        self._finalizer = weakref.finalize(self, _libc.munmap, base, length)
        # At exit daemon threads may still read here, or map a file at a fixed address.
        self._finalizer.atexit = False

    def map(self, number: int, path: Path) -> None:
        """Map the file `path` as file `number`."""
        at, size = self._place(number)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            _map(at, size, descriptor)
        finally:
            os.close(descriptor)
        # Without this, each page fault also reads megabytes around it, which are not needed.
        _libc.madvise(at, size, mmap.MADV_RANDOM)

    def unmap(self, number: int) -> None:
        """Free the file's memory; its addresses stay reserved."""
        at, size = self._place(number)
        _map(at, size, -1)

    def populate(self, number: int) -> None:
        """Read a mapped file into memory, from its first byte to its last.

        Raises:
            OSError: if the disk cannot be read.
        """
        at, size = self._place(number)
        _libc.madvise(at, size, mmap.MADV_SEQUENTIAL)
        failed = _libc.madvise(at, size, _MADV_POPULATE_READ)
        error = ctypes.get_errno()
        _libc.madvise(at, size, mmap.MADV_RANDOM)
        if failed and error != errno.EINVAL:  # a kernel before 5.14 cannot read ahead of need
            raise OSError(error, os.strerror(error))

    def addresses(
        self, numbers: NDArray[np.integer], offsets: NDArray[np.integer], size: int
    ) -> NDArray[np.int64]:
        """Addresses of `size` bytes at each of `offsets [B]` in the files `numbers [B]`, `[B]`.

        Raises:
            IndexError: if any of them do not lie within their file.
        """
        at: NDArray[np.int64] = offsets.astype(np.int64, copy=False)
        if ((at < 0) | (at + size > self._sizes[numbers])).any():
            raise IndexError(f"{size} bytes are not all within their file")
        return at + self._starts[numbers]

    def _place(self, number: int) -> tuple[int, int]:
        return int(self._starts[number]), int(self._sizes[number])


class Gather:
    """Copies of equal size from addresses in any mappings into the rows of one array.

    There is no Python per clip: one `index_select` runs over an array whose items overlap. While
    that runs at a disk's speed, the kernel is told beforehand of all that a batch needs, so that
    the disk reads many clips at once.
    """

    def __init__(self) -> None:
        self._from_disk = True

    def __call__(self, addresses: NDArray[np.int64], out: NDArray[np.floating]) -> None:
        """Fill `out [B, count]` with `count` numbers from each of `addresses [B]`.

        The rows of `out` may be columns of a wider array. Every address must be mapped, and be a
        multiple of the size of a number.
        """
        import torch  # only reading needs it, and it takes seconds

        count, started = out.shape[1], time.monotonic()
        size = out.itemsize * count  # bytes of a row
        if not len(addresses):
            return
        if self._from_disk:
            for at in addresses.tolist():
                page = at - at % mmap.PAGESIZE
                _libc.madvise(page, size + at - page, mmap.MADV_WILLNEED)
        first = int(addresses.min())
        numbers = (int(addresses.max()) - first) // out.itemsize + count
        memory = torch.from_numpy(np.asarray(_Memory(first, numbers, out.dtype)))
        items = memory.as_strided((numbers - count + 1, count), (1, 1))
        index = torch.from_numpy((addresses - first) // out.itemsize)
        torch.index_select(items, 0, index, out=torch.from_numpy(out))
        seconds = time.monotonic() - started
        self._from_disk = seconds > 1e-3 + len(addresses) * size / _MEMORY_SPEED


class _Memory:
    """Numbers from an address on, for NumPy."""

    def __init__(self, address: int, numbers: int, dtype: np.dtype[np.floating]) -> None:
        # As writable, because torch warns of other arrays. It is never written to.
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (numbers,),
            "typestr": dtype.str,
            "version": 3,
        }


def _map(address: int | None, size: int, descriptor: int) -> int:
    """Map a file read-only, or with descriptor -1 reserve addresses; returns the first address."""
    flags = mmap.MAP_SHARED if descriptor >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    flags |= (_MAP_FIXED if address is not None else 0) | (_MAP_NORESERVE if descriptor < 0 else 0)
    protection = mmap.PROT_READ if descriptor >= 0 else 0
    start: int | None = _libc.mmap(address, size, protection, flags, descriptor, 0)
    if start is None or start == _FAILED:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return start
