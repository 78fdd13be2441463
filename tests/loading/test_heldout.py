"""Held-out clips: chosen by the id alone, never trained on, and of every set of a mixture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avvp_dist.errors import DataError
from avvp_dist.loading.heldout import training_clips, validation_clips
from avvp_dist.loading.mixture import Mixture
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.exclusion import Exclusion, write_excluded
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet


def write(out: Path, numbers: range) -> ShardSet:
    made = (Clip(f"clip{n}", {"audio": np.ones((2, 3))}) for n in numbers)
    return write_shard_set(made, out, clips_per_shard=50)


@pytest.fixture
def data(tmp_path: Path) -> Mixture:
    """Sets of 300 and 100 clips."""
    return Mixture([write(tmp_path / "a", range(300)), write(tmp_path / "b", range(300, 400))])


def test_a_clip_keeps_its_side_wherever_it_is_packed(data: Mixture, tmp_path: Path) -> None:
    sides = {data.id(clip): side for clip, side in enumerate(training_clips(data, 0.2).tolist())}
    other = Mixture([write(tmp_path / "c", range(399, 149, -1))])
    for clip, side in enumerate(training_clips(other, 0.2).tolist()):
        assert sides[other.id(clip)] == side


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_the_fraction_is_held_out_and_a_larger_one_holds_out_more(
    data: Mixture, fraction: float
) -> None:
    trained = training_clips(data, fraction)
    assert abs((~trained).mean() - fraction) < 0.08  # 3 standard deviations at 400 clips
    assert not (training_clips(data, fraction + 0.1) & ~trained).any()
    assert training_clips(data, 0).all()


def test_validation_takes_the_first_clips_of_every_set_in_turns(data: Mixture) -> None:
    trained = training_clips(data, 0.3)
    held = np.flatnonzero(~trained)
    assert validation_clips(data, trained, 1000).tolist() == held.tolist()
    chosen = validation_clips(data, trained, 10)
    first, second = held[held < 300], held[held >= 300]
    assert chosen.tolist() == [*first[:5], *second[:5]]


def test_excluded_clips_do_not_validate(data: Mixture) -> None:
    trained = training_clips(data, 0.3)
    gone = int(np.flatnonzero(~trained)[0])
    shards = data.sets[0]
    exclusion = Exclusion(gone, shards.id(gone), "id", "x", (float("nan"),))
    write_excluded(
        shards.folder, shards.manifest, [exclusion], ["audio"], against=[], similarity=0.9
    )
    again = Mixture([ShardSet(shards.folder), data.sets[1]])
    expected = np.flatnonzero(~trained)[1:].tolist()
    assert validation_clips(again, trained, 1000).tolist() == expected


def test_without_a_clip_to_train_on_it_is_an_error(data: Mixture) -> None:
    with pytest.raises(DataError, match=r"all 400 clips are held out\. Lower data\.heldout"):
        training_clips(data, 1.0)
