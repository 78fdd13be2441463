"""The pool of negatives: which clips are in it, on any number of ranks, and their gradient."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Barrier

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.objectives.negative_pool import NegativePool, PoolRows, StoredClips, pool_places
from avvp_dist.runtime.ranks import Ranks, single_rank

CPU = torch.device("cpu")
PLACES = 12


@pytest.mark.parametrize(("size", "count"), [(4, 4), (5, 5), (1, 1), (12, 12), (0, 12), (99, 12)])
def test_every_place_is_as_likely_and_none_is_taken_twice(size: int, count: int) -> None:
    steps = 2400
    pools = np.stack([pool_places(size, PLACES, 0, step, 0) for step in range(steps)])
    assert pools.shape == (steps, count)
    assert (np.diff(pools, axis=1) > 0).all()
    frequency = np.bincount(pools.ravel()) / steps
    assert len(frequency) == PLACES
    assert frequency == pytest.approx(count / PLACES, abs=0.04)


def test_seed_step_and_micro_batch_choose_the_pool() -> None:
    first = pool_places(2, 1000, 0, 0, 0).tolist()
    for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert pool_places(2, 1000, *key).tolist() != first


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """A rank in a thread of its own."""

    lent: list[Tensor]
    turn: Barrier

    def all_gather(self, x: Tensor) -> Tensor:
        self.lent[self.rank] = x
        self.turn.wait()
        everyone = torch.cat(self.lent)
        self.turn.wait()
        return everyone


def pool_of(
    pool: NDArray[np.int64], readable: NDArray[np.bool_], ranks: ThreadRanks
) -> tuple[Tensor, list[Tensor]]:
    """A rank's pool, of clips that are numbered by their place from 1 on."""
    each = PLACES // ranks.size
    places = np.flatnonzero(readable[ranks.rank * each : (ranks.rank + 1) * each])
    rows, empty, order = PoolRows.choose(pool, places, each, ranks)
    assert rows.shape == empty.shape == (-(-len(pool) // ranks.size),)
    clips = torch.from_numpy(ranks.rank * each + places + 1)
    if not len(clips):
        clips = torch.tensor([77])  # the stand-in of a rank that has no clip
    x = clips[:, None, None].float().expand(-1, 2, 3)
    return NegativePool(rows, empty, order, ranks)(x, [clips, clips > 0])


@pytest.mark.parametrize("size", [1, 4, 5, 12])
def test_any_number_of_ranks_has_the_same_pool(size: int) -> None:
    """Places of clips that cannot be read, or that a last batch does not fill, are zeros."""
    readable = np.ones(PLACES, bool)
    readable[[1, 2, 3, 7, 11]] = False
    for step, count in itertools.product(range(3), (1, 2, 4, 12)):
        pool = pool_places(size, PLACES, 0, step, 0)
        expected = torch.from_numpy(np.where(readable[pool], pool + 1, 0))
        lent, turn = [torch.empty(0)] * count, Barrier(count, timeout=10)
        ranks = [ThreadRanks(rank, count, CPU, lent, turn) for rank in range(count)]
        with ThreadPoolExecutor(count) as threads:
            found = list(threads.map(partial(pool_of, pool, readable), ranks))
        for x, (clips, real) in found:
            assert torch.equal(clips, expected) and torch.equal(real, clips > 0)
            assert torch.equal(x, clips[:, None, None].float().expand(-1, 2, 3))


def test_the_gradient_returns_to_the_clips_of_the_pool() -> None:
    x = torch.arange(1.0, 13.0).reshape(6, 2).requires_grad_()
    rows = PoolRows.choose(np.array([1, 3, 5]), np.array([0, 1, 2, 5, 6, 7]), 8, single_rank())
    pool, _ = NegativePool(*rows, single_rank())(x, [torch.ones(6)])
    assert pool.tolist() == [[3, 4], [0, 0], [7, 8]]
    (pool * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 0], [1, 1], [0, 0], [3, 3], [0, 0], [0, 0]]


@pytest.mark.parametrize("size", [1, 3])
def test_traits_of_any_type_and_shape_come_back(size: int) -> None:
    torch.manual_seed(0)
    traits = [
        torch.rand(3, 5) > 0.5,
        torch.arange(3) + 2**40,
        torch.randn(3, 5, 7).half(),
        torch.randn(3, 3, 5).transpose(1, 2),
        torch.randn(3, 1).bfloat16(),
    ]
    rows = PoolRows.choose(np.arange(size) + 1, np.arange(1, 4), 4, single_rank())
    _, found = NegativePool(*rows, single_rank())(torch.zeros(3, 1), traits)
    for expected, trait in zip(traits, found, strict=True):
        assert torch.equal(trait, expected[:size]) and trait.dtype == expected.dtype


@pytest.mark.parametrize("rules", [None, torch.tensor([0, 1, 1])])
def test_the_pools_clips_come_as_they_are_stored(rules: Tensor | None) -> None:
    streams = {"audio": torch.randn(3, 4, 2).half(), "visual": torch.randn(3, 4, 5).half()}
    own = StoredClips(streams, torch.rand(3, 4) > 0.5, torch.arange(3) + 7, rules)
    rows = PoolRows.choose(np.array([0, 2, 3]), np.array([0, 1, 2]), 4, single_rank())
    pool = NegativePool(*rows, single_rank()).stored(own)
    assert pool.numbers.tolist() == [7, 9, 0] and not pool.real[2].any()
    for ours, theirs in zip(pool.others(), own.take(torch.tensor([0, 2])).others(), strict=True):
        assert torch.equal(ours[:2], theirs)
    for name, x in streams.items():
        assert torch.equal(pool.streams[name][:2], x[[0, 2]]) and not pool.streams[name][2].any()
