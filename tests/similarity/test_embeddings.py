"""Embeddings: mean directions, joint vectors, and the store that reads them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avvp_dist.config import ReadConfig
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.similarity import embeddings
from avvp_dist.similarity.embeddings import (
    EmbeddingStore,
    embed,
    embed_shard,
    joint_vectors,
    stream_cosines,
)


def test_an_embedding_is_the_mean_direction_of_the_real_snippets() -> None:
    x = np.array([[[3, 4], [0, 9], [60000, 0]], [[0, 0], [2, 0], [0, 0]]], np.float16)
    made = embed({"audio": x, "visual": 0 * x}, np.array([2, 3]))
    direction = np.array([0.6, 1.8]) / np.hypot(0.6, 1.8)
    np.testing.assert_allclose(made[:, :2], [direction, [1, 0]], atol=1e-3)
    assert made.dtype == np.float16 and not made[:, 2:].any()


def test_the_product_of_joint_vectors_is_the_mean_cosine_of_the_streams() -> None:
    made = np.array([[3, 4, 0, 2], [4, 3, 0, 5], [3, 4, 0, 0]], np.float16)
    joint = joint_vectors(made, [2, 2])
    np.testing.assert_allclose(joint[0] @ joint[1], (0.96 + 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(joint, axis=1), [1, 1, np.sqrt(0.5)], rtol=1e-6)
    cosines = stream_cosines(joint[[0, 0]], joint[[1, 2]], [2, 2])
    np.testing.assert_allclose(cosines, [[0.96, 1], [1, 0]], atol=1e-6)


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    """Ten clips of two streams in shards of four."""
    rng = np.random.default_rng(0)
    clips = [
        Clip(f"c{n}", {"audio": rng.random((3, 4)), "visual": rng.random((3, 6))})
        for n in range(10)
    ]
    return write_shard_set(clips, tmp_path / "shards", clips_per_shard=4)


def filled(shards: ShardSet, folder: Path) -> tuple[EmbeddingStore, list[tuple[int, int]]]:
    """A store of all shards, and what `embed_shard` returned for each."""
    store = EmbeddingStore.create(shards, folder)
    place = (shards.name, shards.digest, ReadConfig())
    return store, [embed_shard(store, *place, number) for number in range(len(shards.shards))]


def test_a_store_gives_clips_in_any_order_over_some_streams(
    shards: ShardSet, tmp_path: Path
) -> None:
    store, results = filled(shards, tmp_path / "store")
    assert results == [(4, 0), (4, 0), (2, 0)]
    clips = np.array([9, 0, 5, 4, 0])
    streams = shards.gather(clips)
    expected = embed(streams, shards.lengths[clips])
    both = store.load(clips, ["audio", "visual"])
    np.testing.assert_array_equal(both, joint_vectors(expected, [4, 6]))
    visual = store.load(clips, ["visual"])
    np.testing.assert_array_equal(visual, joint_vectors(expected[:, 4:], [6]))


def test_clips_that_cannot_be_read_are_counted_and_zero(shards: ShardSet, tmp_path: Path) -> None:
    (shards.folder / "shard-000001.tar").write_bytes(b"")
    store, results = filled(shards, tmp_path / "store")
    assert results == [(4, 0), (4, 4), (2, 0)]
    vectors = store.load(np.arange(10), ["audio", "visual"])
    assert np.flatnonzero(~vectors.any(1)).tolist() == [4, 5, 6, 7]


def test_blocks_cover_all_clips_once(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "BLOCK", 4)
    store = EmbeddingStore.create(shards, tmp_path / "store")
    assert [clip for block in store.blocks() for clip in block] == list(range(10))
    assert max(map(len, store.blocks())) == 4
