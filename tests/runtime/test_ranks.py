"""Parts of an array over ranks, and how they are joined."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avvp_dist.runtime import ranks as module
from avvp_dist.runtime.ranks import Ranks

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_joined_parts_are_the_items_in_order(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    items = np.arange(11)
    parts = [Ranks(rank, size, CPU).own_slice(items) for rank in range(size)]

    def gather(into: list[object], part: object) -> None:
        into[:] = parts

    monkeypatch.setattr(module.dist, "all_gather_object", gather)
    for rank in range(size):
        assert Ranks(rank, size, CPU).interleave(parts[rank]).tolist() == items.tolist()
