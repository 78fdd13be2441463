"""The pool of negatives: which clips are in it, and the gradient that returns to them."""

from __future__ import annotations

import pytest
import torch

from avvp_dist.hashing import hash_uniform
from avvp_dist.objectives.negative_pool import NegativePool
from avvp_dist.runtime.ranks import Ranks, single_rank

ALL = torch.tensor([0.7, 0.2, torch.inf, 0.9, 0.1, 0.4])
"""Hashes of six clips; the third one is never in the pool."""


@pytest.mark.parametrize(
    ("size", "chosen"), [(2, [4, 1]), (0, [4, 1, 5, 0, 3, None]), (9, [4, 1, 5, 0, 3, None])]
)
def test_it_holds_the_clips_with_the_smallest_hashes(size: int, chosen: list[int | None]) -> None:
    x = torch.arange(1.0, 13.0).reshape(6, 2).requires_grad_()
    pool = NegativePool(ALL, 6, size, single_rank())
    rows = torch.stack([torch.zeros(2) if one is None else x[one] for one in chosen])
    assert torch.equal(pool(x), rows)
    pool(x).sum().backward()
    assert x.grad is not None
    assert x.grad[:, 0].tolist() == [float(clip in chosen) for clip in range(6)]


class Peers(Ranks):
    """Rank 0 of two; rank 1 has the hashes of `ALL` from the fourth on."""

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, ALL[3:], torch.tensor([torch.inf])])

    def all_reduce_sum(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_rows_of_other_ranks_are_zeros_until_they_are_summed() -> None:
    pool = NegativePool(ALL[:3], 4, 4, Peers(0, 2, torch.device("cpu")))
    mine = torch.tensor([[1], [2], [3]], dtype=torch.uint8)
    assert pool(mine).tolist() == [[0], [2], [0], [1]]


def test_each_step_has_another_pool() -> None:
    clips = torch.arange(1000)
    pools = [
        NegativePool(
            torch.from_numpy(hash_uniform(clips.numpy(), "negatives", 0, step)),
            1000,
            100,
            single_rank(),
        )(clips)
        for step in range(40)
    ]
    counts = torch.bincount(torch.cat(pools), minlength=1000)
    assert counts.sum() == 4000 and int(counts.max()) < 15
    assert int((counts > 0).sum()) > 950  # of 1,000 (1 - 0.9^40) = 985 expected
