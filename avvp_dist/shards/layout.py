"""Where a clip's streams lie in a batch: it is one float16 `[B, width]`, streams are views."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MOST_BETWEEN = 1.25
_ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Layout:
    """`starts[name]` is the first of a stream's numbers among the `width` of a clip.

    With `one_run` they lie in the tar as they lie here, headers between them included, so that a
    clip is one copy.
    """

    snippets: int
    dims: dict[str, int]
    starts: dict[str, int]
    width: int
    one_run: bool

    def views(self, room: NDArray[np.float16]) -> dict[str, NDArray[np.float16]]:
        """The streams `[B, T, D]` of a room `[B, width]`."""
        return {
            name: room[:, start : start + self.snippets * self.dims[name]].reshape(
                len(room), self.snippets, self.dims[name]
            )
            for name, start in self.starts.items()
        }


def side_by_side(snippets: int, dims: dict[str, int]) -> Layout:
    """The streams one after the other."""
    ends = np.cumsum([0, *(snippets * dim for dim in dims.values())]).tolist()
    return Layout(snippets, dims, dict(zip(dims, ends, strict=False)), ends[-1], one_run=False)


def layout_of(index: NDArray[np.void], snippets: int, dims: dict[str, int]) -> Layout:
    """One run, if all clips of an index have the same little between their streams."""
    dense = side_by_side(snippets, dims)
    first = index["offsets"][0].astype(np.int64)
    apart = first - first.min()
    for start in range(0, len(index), _ROWS_AT_ONCE):
        offsets = index["offsets"][start : start + _ROWS_AT_ONCE].astype(np.int64)
        if (offsets - offsets.min(1, keepdims=True) != apart).any():
            return dense
    starts = dict(zip(dims, (apart // 2).tolist(), strict=True))
    width = max(start + snippets * dims[name] for name, start in starts.items())
    if width > _MOST_BETWEEN * dense.width:
        return dense
    return Layout(snippets, dims, starts, width, one_run=True)
