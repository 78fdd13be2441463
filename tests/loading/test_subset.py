"""Subsets: as many clips as were asked for, of each set, and the smaller ones in the larger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avvp_dist.errors import ConfigError
from avvp_dist.loading.mixture import Mixture
from avvp_dist.loading.subset import subset
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.exclusion import Exclusion, write_excluded
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet


def write(out: Path, numbers: range) -> ShardSet:
    made = (Clip(f"clip{n}", {"audio": np.ones((2, 3))}) for n in numbers)
    return write_shard_set(made, out, clips_per_shard=20)


@pytest.fixture
def data(tmp_path: Path) -> Mixture:
    """Sets of 60 and 40 clips."""
    return Mixture([write(tmp_path / "a", range(60)), write(tmp_path / "b", range(60, 100))])


def ids(data: Mixture, mask: np.ndarray) -> set[str]:
    return {data.id(int(clip)) for clip in np.flatnonzero(mask)}


def test_fewer_clips_are_among_more_and_each_set_gives_its_number(data: Mixture) -> None:
    everything = np.ones(100, bool)
    smaller, larger = (subset(data, everything, clips, 3) for clips in ([5, 9], [20, 10]))
    assert (smaller[:60].sum(), smaller[60:].sum()) == (5, 9)
    assert ids(data, smaller) < ids(data, larger)
    assert ids(data, subset(data, everything, [5, 9], 4)) != ids(data, smaller)
    assert subset(data, everything, [], 3).all()


def test_a_clip_is_chosen_by_its_id_wherever_it_is_packed(data: Mixture, tmp_path: Path) -> None:
    chosen = ids(data, subset(data, np.ones(100, bool), [7, 40], 1))
    other = Mixture([write(tmp_path / "c", range(59, -1, -1))])
    assert ids(other, subset(other, np.ones(60, bool), [7], 1)) < chosen


def test_excluded_and_unusable_clips_are_never_chosen(tmp_path: Path) -> None:
    shards = write(tmp_path / "a", range(10))
    gone = [Exclusion(clip, shards.id(clip), "id", "x", (float("nan"),)) for clip in (0, 1)]
    write_excluded(shards.folder, shards.manifest, gone, ["audio"], against=[], similarity=0.9)
    data = Mixture([ShardSet(shards.folder)])
    usable = np.arange(10) != 2
    assert np.flatnonzero(subset(data, usable, [7], 0)).tolist() == list(range(3, 10))
    with pytest.raises(ConfigError, match=r"data\.clips=\[8\]: .*a has 7 clips to train on"):
        subset(data, usable, [8], 0)


def test_one_number_for_each_set_is_needed(data: Mixture) -> None:
    with pytest.raises(ConfigError, match="not one number for each of the 2 shard sets"):
        subset(data, np.ones(100, bool), [5], 0)
