"""Transfer: each memory once, small tensors together, everything in its place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from avvp_dist.loading import transfer
from avvp_dist.loading.loader import read_clips
from avvp_dist.loading.mixture import Mixture
from avvp_dist.loading.transfer import Transfer, to_device
from avvp_dist.shards.shard_set import ShardSet
from tests.training.operations import Operations

META = torch.device("meta")


@dataclass(frozen=True)
class Batch:
    streams: dict[str, Tensor]
    lengths: Tensor | None
    clips: Tensor
    kept: Tensor
    step: int


@pytest.fixture
def batch(packed: dict[str, ShardSet]) -> Batch:
    read, _ = read_clips(Mixture([packed["train"]]), np.arange(5))
    return Batch(read.streams, None, torch.arange(5), torch.ones(5, 2, 3, dtype=torch.bool), 7)


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Addresses of memory that stands for pinned memory: this host may have no device."""
    addresses: set[int] = set()

    def fresh(size: int) -> Tensor:
        made = torch.empty(size, dtype=torch.uint8)
        addresses.add(made.data_ptr())
        return made

    monkeypatch.setattr(transfer, "_pinned", fresh)
    monkeypatch.setattr(Tensor, "is_pinned", lambda tensor: tensor.data_ptr() in addresses)
    return addresses


def test_features_travel_once_and_small_tensors_together(
    batch: Batch, pinned: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = next(iter(batch.streams.values())).untyped_storage()
    pinned.add(stored.data_ptr())
    with Operations() as copies:
        moved = to_device(batch, META)
    assert len(copies.copied) == 1  # all of it is small
    monkeypatch.setattr(transfer, "_ALONE", 1000)
    with Operations() as copies:
        to_device(batch, META)
    assert copies.copied == [stored.nbytes(), 48 + 32]  # in pieces of 16 bytes
    assert (moved.lengths, moved.step) == (None, 7)
    for name, stream in batch.streams.items():
        one = moved.streams[name]
        assert (one.shape, one.dtype, one.stride()) == (
            stream.shape,
            stream.dtype,
            stream.stride(),
        )
        assert one.is_meta


def test_every_copy_starts_from_pinned_memory(
    batch: Batch, pinned: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_ALONE", 1)  # even what would travel alone if it were pinned
    sources: list[int] = []

    def copy(memory: Tensor) -> Tensor:
        sources.append(memory.data_ptr())
        return memory

    moved = transfer._moved(batch, copy)
    assert len(sources) == 1 and set(sources) <= pinned
    for name, stream in batch.streams.items():
        assert torch.equal(moved.streams[name], stream)


@pytest.mark.parametrize("alone", [1, 10**9])
def test_every_number_arrives(
    batch: Batch, alone: int, pinned: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A copy within the host stands for one to a device.
    monkeypatch.setattr(transfer, "_ALONE", alone)
    pinned.add(next(iter(batch.streams.values())).untyped_storage().data_ptr())
    moved = transfer._moved(batch, lambda memory: memory.clone())
    for name, stream in batch.streams.items():
        assert torch.equal(moved.streams[name], stream)
        assert moved.streams[name].data_ptr() != stream.data_ptr()
    assert torch.equal(moved.clips, batch.clips) and torch.equal(moved.kept, batch.kept)


def test_nothing_is_copied_on_the_cpu(batch: Batch) -> None:
    sent = Transfer(torch.device("cpu")).send(batch)
    assert sent.receive() is batch
