"""Places of a clip's streams in a batch, which is one array `[B, width]`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor  # reading shard sets for grounding needs no torch at import

Buffer = TypeVar("Buffer", NDArray[np.floating], "Tensor")

_MAXIMUM_STRETCH = 1.25
"""Width of a run with the tar's headers in it, over the width of the numbers alone."""
_ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Layout:
    """Order of a clip's streams in a row of `width` numbers of type `dtype`.

    `starts[name]` is the first number of a stream `[T, D]`. With `one_run` the streams lie in the
    row as they lie in the tar, headers between them included, so that a clip is one copy.
    """

    snippets: int
    dims: dict[str, int]
    starts: dict[str, int]
    width: int
    dtype: str
    one_run: bool

    @property
    def row_bytes(self) -> int:
        """Size of a clip in bytes."""
        return self.width * np.dtype(self.dtype).itemsize

    def empty(self, clips: int) -> NDArray[np.floating]:
        """Fresh memory `[clips, width]`."""
        return np.empty((clips, self.width), self.dtype)

    def views(self, buffer: Buffer) -> dict[str, Buffer]:
        """Streams `[B, T, D]` by name, as views of a buffer `[B, width]` (NumPy or torch)."""
        return {
            name: buffer[:, start : start + self.snippets * dim].reshape(
                len(buffer), self.snippets, dim
            )
            for (name, dim), start in zip(self.dims.items(), self.starts.values(), strict=True)
        }

    def runs(self) -> Iterator[tuple[int, int]]:
        """Start and length of each piece of a row that is contiguous in the tar."""
        if self.one_run:
            yield 0, self.width
            return
        for name, start in self.starts.items():
            yield start, self.snippets * self.dims[name]


def side_by_side(snippets: int, dims: dict[str, int], dtype: str) -> Layout:
    """Streams one after the other, without gaps."""
    ends = np.cumsum([0, *(snippets * dim for dim in dims.values())]).tolist()
    starts = dict(zip(dims, ends, strict=False))
    return Layout(snippets, dims, starts, ends[-1], dtype, one_run=False)


def layout_of(index: NDArray[np.void], snippets: int, dims: dict[str, int], dtype: str) -> Layout:
    """Layout of a shard set: one run if all clips have equal, small gaps between their streams."""
    dense = side_by_side(snippets, dims, dtype)
    first = index["offsets"][0].astype(np.int64)
    gaps = first - first.min()
    for start in range(0, len(index), _ROWS_AT_ONCE):
        offsets = index["offsets"][start : start + _ROWS_AT_ONCE].astype(np.int64)
        if (offsets - offsets.min(1, keepdims=True) != gaps).any():
            return dense
    starts = dict(zip(dims, (gaps // np.dtype(dtype).itemsize).tolist(), strict=True))
    width = max(start + snippets * dims[name] for name, start in starts.items())
    if width > _MAXIMUM_STRETCH * dense.width:
        return dense
    return Layout(snippets, dims, starts, width, dtype, one_run=True)
