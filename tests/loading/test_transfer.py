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


def test_features_travel_once_and_small_tensors_together(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Operations() as copies:
        moved = to_device(batch, META)
    assert len(copies.copied) == 1  # all of it is small
    monkeypatch.setattr(transfer, "_ALONE", 1000)
    with Operations() as copies:
        to_device(batch, META)
    stored = next(iter(batch.streams.values())).untyped_storage().nbytes()
    assert copies.copied == [stored, 48 + 32]  # in pieces of 16 bytes
    assert (moved.lengths, moved.step) == (None, 7)
    for name, stream in batch.streams.items():
        one = moved.streams[name]
        assert (one.shape, one.dtype, one.stride()) == (
            stream.shape,
            stream.dtype,
            stream.stride(),
        )
        assert one.is_meta


@pytest.mark.parametrize("alone", [1, 10**9])
def test_every_number_arrives(batch: Batch, alone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # A copy within the host stands for one to a device.
    monkeypatch.setattr(transfer, "_ALONE", alone)
    moved = transfer._moved(batch, lambda memory: memory.clone())
    for name, stream in batch.streams.items():
        assert torch.equal(moved.streams[name], stream)
        assert moved.streams[name].data_ptr() != stream.data_ptr()
    assert torch.equal(moved.clips, batch.clips) and torch.equal(moved.kept, batch.kept)


def test_nothing_is_copied_on_the_cpu(batch: Batch) -> None:
    sent = Transfer(torch.device("cpu")).send(batch)
    assert sent.receive() is batch
