"""Parts of an array over ranks, and how they are joined."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

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


def test_mlflow_is_hidden_from_one_thread_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with module._without_mlflow(), ThreadPoolExecutor() as others:
        with pytest.raises(ImportError, match="no MLflow"):
            find_spec("mlflow")
        assert others.submit(find_spec, "mlflow").result()
    assert find_spec("mlflow")
