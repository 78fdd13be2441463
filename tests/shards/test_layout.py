"""The layout of a batch: streams are views of one buffer, and lie as the tars allow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avvp_dist.shards.layout import Layout, layout_of, side_by_side

DIMS = {"audio": 2, "visual": 3}
SNIPPETS = 4


def index(offsets: list[list[int]]) -> np.ndarray:
    """Rows of an index that know the offsets in bytes alone."""
    rows = np.zeros(len(offsets), [("offsets", "<u8", (2,))])
    rows["offsets"] = offsets
    return rows


def test_streams_side_by_side_leave_no_gap() -> None:
    layout = side_by_side(SNIPPETS, DIMS, "float16")
    assert (layout.starts, layout.width, layout.one_run) == ({"audio": 0, "visual": 8}, 20, False)
    assert list(layout.runs()) == [(0, 8), (8, 12)]


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_views_are_the_memory_of_the_buffer(library: str) -> None:
    layout = Layout(
        SNIPPETS, DIMS, {"audio": 1, "visual": 10}, width=23, dtype="float16", one_run=True
    )
    memory = np.arange(46, dtype=np.float16).reshape(2, 23)
    views = layout.views(memory) if library == "numpy" else layout.views(torch.from_numpy(memory))
    assert {name: tuple(view.shape) for name, view in views.items()} == {
        "audio": (2, 4, 2),
        "visual": (2, 4, 3),
    }
    assert views["audio"][1].flatten().tolist() == list(range(24, 32))
    assert views["visual"][0].flatten().tolist() == list(range(10, 22))
    memory[1, 1] = -1
    assert views["audio"][1, 0, 0] == -1


def test_equal_small_gaps_are_copied_along_in_one_run() -> None:
    layout = layout_of(index([[512, 534], [2560, 2582]]), SNIPPETS, DIMS, "float16")
    assert layout.one_run
    assert layout.starts == {"audio": 0, "visual": 11}
    assert list(layout.runs()) == [(0, layout.width)] == [(0, 23)]


def test_streams_may_lie_in_the_tar_in_any_order() -> None:
    layout = layout_of(index([[536, 512], [2584, 2560]]), SNIPPETS, DIMS, "float16")
    assert (layout.one_run, layout.starts, layout.width) == (True, {"audio": 12, "visual": 0}, 20)


@pytest.mark.parametrize(
    "offsets",
    [[[512, 534], [2560, 2584]], [[512, 1024], [2560, 3072]]],
    ids=["gaps differ", "gaps are large"],
)
def test_other_gaps_are_left_out(offsets: list[list[int]]) -> None:
    assert layout_of(index(offsets), SNIPPETS, DIMS, "float16") == side_by_side(
        SNIPPETS, DIMS, "float16"
    )
