"""Checks of a shard's file: each way in which it is another file is named with its path."""

from __future__ import annotations

from pathlib import Path

import pytest

from avvp_dist.errors import DataError
from avvp_dist.shards.manifest import Shard
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import check_size, ignore_bad, raise_on_bad, verify


@pytest.fixture
def shard(local: ShardSet) -> Shard:
    return local.shards[1]


@pytest.fixture
def path(local: ShardSet, shard: Shard) -> Path:
    return local.folder / shard.name


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_whole_shard_passes(shard: Shard, path: Path) -> None:
    check_size(shard, path)
    for mode in ("sha256", "size"):
        verify(shard, path, mode)


def test_a_missing_and_a_cut_shard_are_named(shard: Shard, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    message = f"shard {path} has {shard.bytes - 1} bytes, its manifest says {shard.bytes}"
    with pytest.raises(DataError, match=message):
        check_size(shard, path)
    path.unlink()
    with pytest.raises(DataError, match=f"shard {path} is missing"):
        check_size(shard, path)


def test_only_the_hash_sees_a_byte_in_the_middle(shard: Shard, path: Path) -> None:
    flip(path, 2000)
    verify(shard, path, "size")
    with pytest.raises(DataError, match=f"shard {path} has another SHA-256.*copy it again"):
        verify(shard, path, "sha256")


def test_the_first_header_is_read_even_without_the_hash(shard: Shard, path: Path) -> None:
    flip(path, 0)
    with pytest.raises(DataError, match=f"shard {path} is no tar: bad checksum"):
        verify(shard, path, "size")


def test_bad_clips_are_an_error_or_none() -> None:
    error = DataError("one")
    ignore_bad([1], error)
    with pytest.raises(DataError) as caught:
        raise_on_bad([1], error)
    assert caught.value is error
