"""Clips found by their ids: the rows are right, and missing or doubled clips are named."""

from __future__ import annotations

import pytest

from avvp_dist.annotations.alignment import align
from avvp_dist.errors import DataError

IDS = ("b_0_10", "a_0_10", "c_0_10")


def test_rows_are_in_the_order_of_the_clips() -> None:
    assert align(["c_0_10", "b_0_10"], IDS, place="p").tolist() == [2, 0]
    assert align([], IDS, place="p").tolist() == []


def test_missing_clips_are_counted_and_the_first_is_named() -> None:
    with pytest.raises(DataError, match=r"^p\.npz lacks 2 of 3 val clips, first x\. Pack it$"):
        align(["a_0_10", "x", "y"], IDS, place="p.npz", what="val clips", remedy="Pack it")


def test_an_id_that_occurs_twice_is_named() -> None:
    with pytest.raises(DataError, match=r"^p\.npz: clip a_0_10 occurs twice"):
        align(["b_0_10"], (*IDS, "a_0_10"), place="p.npz")
