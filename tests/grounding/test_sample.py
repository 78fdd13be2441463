"""The sample: the same clips however they are sharded, and the cosines within and between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.config import CalibrateConfig
from avvp_dist.errors import DataError
from avvp_dist.grounding.sample import (
    CrossClipCosines,
    cross_clip_cosines,
    sample_clips,
    within_clip_histograms,
)
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet

STREAMS = ["audio", "clap"]


def clips(count: int = 60, snippets: int = 3) -> list[Clip]:
    rng = np.random.default_rng(3)
    return [
        Clip(
            f"c{number}",
            {
                "audio": abs(rng.standard_normal((snippets, 5))),
                "clap": rng.random((snippets, 8)),
            },
        )
        for number in range(count)
    ]


def config(shards: ShardSet, **keys: Any) -> CalibrateConfig:
    keys = {"streams": STREAMS, "workers": 1, "duplicate_similarity": 1.0, **keys}
    return CalibrateConfig(shards=str(shards.folder), **keys)


@pytest.mark.parametrize("seed", [0, 7])
def test_neither_sharding_nor_order_changes_the_sample(tmp_path: Path, seed: int) -> None:
    made = clips()
    one = write_shard_set(made, tmp_path / "one")
    many = write_shard_set(made[::-1], tmp_path / "many", clips_per_shard=7)
    first, second = (sample_clips(s, config(s, clips=20, seed=seed)) for s in (one, many))
    ids = [one.id(int(clip)) for clip in first.clips]
    assert ids == [many.id(int(clip)) for clip in second.clips]
    assert len(set(ids)) == 20
    for name in STREAMS:
        np.testing.assert_array_equal(first.streams[name], second.streams[name])
        np.testing.assert_array_equal(first.streams[name], one.gather(first.clips)[name])
    for name, table in cross_clip_cosines(first, STREAMS).cosines.items():
        np.testing.assert_array_equal(table, cross_clip_cosines(second, STREAMS).cosines[name])


def test_another_seed_samples_other_clips(tmp_path: Path) -> None:
    shards = write_shard_set(clips(), tmp_path)
    first, second = (sample_clips(shards, config(shards, clips=20, seed=seed)) for seed in (0, 1))
    assert set(first.clips.tolist()) != set(second.clips.tolist())


def test_cross_clip_pairs_are_all_but_the_clip_with_itself(tmp_path: Path) -> None:
    shards = write_shard_set(clips(snippets=1), tmp_path)
    sample = sample_clips(shards, config(shards))
    cosines = cross_clip_cosines(sample, STREAMS).cosines
    for name in STREAMS:
        x = sample.streams[name][:, 0].astype(np.float64)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        exact = x @ x.T
        np.fill_diagonal(exact, -np.inf)
        np.testing.assert_allclose(cosines[name], exact, atol=1e-6)


def test_the_joined_fraction_depends_on_the_rule() -> None:
    far = -np.inf
    tables = {
        "audio": np.array([[far, 0.9, 0.1], [0.9, far, 0.9]], np.float32),
        "visual": np.array([[far, 0.9, 0.9], [0.1, far, 0.1]], np.float32),
    }
    cross, limits = CrossClipCosines(tables), {"audio": 0.5, "visual": 0.5}
    assert cross.joined_fraction(limits, "or") == 1
    assert cross.joined_fraction(limits, "and") == 0.25
    assert cross.joined_fraction({"visual": 0.5}, "and") == 0.5


def test_pairs_within_clips_leave_padding_out() -> None:
    cosines = np.full((2, 3, 3), 0.5, np.float32)
    cosines[1, :, 2] = cosines[1, 2, :] = 0.9  # padding
    histogram = within_clip_histograms({"audio": cosines}, np.array([3, 2]))["audio"]
    assert (histogram.total, histogram.fraction_reaching(0.6)) == (4, 0.0)


def test_vectors_without_direction_are_in_no_pair(tmp_path: Path) -> None:
    made = clips(4, 1)
    made[1].streams["audio"][:] = 0
    shards = write_shard_set(made, tmp_path)
    sample = sample_clips(shards, config(shards))
    tables = cross_clip_cosines(sample, STREAMS).cosines
    assert [int(np.isfinite(tables[name]).sum()) for name in STREAMS] == [6, 12]


def test_unreadable_clips_are_counted(tmp_path: Path) -> None:
    shards = write_shard_set(clips(30), tmp_path, clips_per_shard=10)
    path = shards.folder / shards.shards[1].name
    path.write_bytes(path.read_bytes()[:-512] + bytes([1]) * 512)
    sample = sample_clips(shards, config(shards))
    assert (sample.sampled, sample.unreadable, len(sample.clips)) == (30, 10, 20)


def test_one_clip_is_not_enough(tmp_path: Path) -> None:
    shards = write_shard_set(clips(2), tmp_path, clips_per_shard=1)
    (shards.folder / shards.shards[0].name).write_bytes(b"")
    with pytest.raises(DataError, match=r"of 2 sampled clips 1 can be read.*needs two"):
        sample_clips(shards, config(shards))
