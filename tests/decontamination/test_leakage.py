"""Training clips that are validation or test clips too: counted by id, reported by content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from avvp_dist.decontamination.leakage import count_leaked, report_leakage
from avvp_dist.errors import DataError
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet

VAL, TEST = "AAAAAAAAAAA", "BBBBBBBBBBB"
LLP_TEST = "4YdbENYcIyE"
"""A video of LLP's test split."""


def shard_set(out: Path, ids: Sequence[str], seeds: Sequence[int] | None = None) -> ShardSet:
    """Clips with the content of their seeds."""
    made = []
    for name, seed in zip(ids, seeds or range(len(ids)), strict=True):
        rng = np.random.default_rng(seed)
        streams = {s: rng.standard_normal((4, 16)) for s in ("audio", "visual")}
        made.append(Clip(name, streams, ("Dog",)))
    return write_shard_set(made, out)


@pytest.fixture
def val(tmp_path: Path) -> ShardSet:
    (tmp_path / "AVVP_test_pd.csv").write_text(f"filename\tevent_labels\n{TEST}_0_10\tDog\n")
    return shard_set(tmp_path / "val", [f"{VAL}_30_40", "own"], [100, 101])


@pytest.mark.parametrize(
    ("clip", "whose"),
    [
        (f"{VAL}_30_40", "val"),
        (f"{VAL}_40_50", "val"),  # another part of the same video
        (f"Y{VAL}_30.000.wav", "val"),
        (f"https://youtu.be/{VAL}?t=3", "val"),
        ("own", "val"),
        ("own.wav", "val"),
        (f"{TEST}_7_17", "AVVP_test_pd.csv"),
        (f"audio/{TEST}.npy", "AVVP_test_pd.csv"),
        (f"{LLP_TEST}_000012", "llp test"),
    ],
)
def test_a_clip_of_a_validation_or_test_video_is_refused(
    clip: str, whose: str, val: ShardSet, tmp_path: Path
) -> None:
    train = shard_set(tmp_path / "train", ["other", clip, "third"])
    with pytest.raises(DataError, match=f": 1 of 3 training clips .* 1 of .*{whose}") as caught:
        count_leaked(train, [val], tmp_path, allowed=False)
    assert f"first {clip}" in str(caught.value) and "avvp decontaminate" in str(caught.value)
    assert count_leaked(train, [val], tmp_path, allowed=True) == 1


def test_other_clips_are_none(val: ShardSet, tmp_path: Path) -> None:
    train = shard_set(tmp_path / "train", ["CCCCCCCCCCC_0_10", "own2", "third"])
    assert count_leaked(train, [val], tmp_path, allowed=False) == 0


def test_a_near_duplicate_is_reported(
    val: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_leakage(shard_set(tmp_path / "clean", ["a", "b"], [1, 2]), [val], 0.95)
    names, _ = capsys.readouterr().err.splitlines()
    assert names.endswith("clean: 0 of 2 names hold a video id")
    train = shard_set(tmp_path / "train", ["a", "reupload", "c"], [1, 101, 3])
    report_leakage(train, [val], 0.95)
    err = capsys.readouterr().err
    assert "1 of 3 training clips are near-duplicates of clips of" in err
    assert "is reupload of own" in err and f"against=[{val.name}]" in err


def test_a_near_duplicate_of_a_test_clip_is_reported(
    val: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = shard_set(tmp_path / "test", ["x", "y"], [200, 201])
    train = shard_set(tmp_path / "train", ["a", "b", "c"], [1, 201, 200])
    report_leakage(train, [val, test], 0.95)
    *_, line = capsys.readouterr().err.splitlines()
    assert "2 of 3 training clips are near-duplicates of clips of" in line
    assert f"against=[{test.name}]" in line


def test_a_clip_of_the_test_set_is_refused(val: ShardSet, tmp_path: Path) -> None:
    test = shard_set(tmp_path / "test", ["mine"], [200])
    train = shard_set(tmp_path / "train", ["a", "mine.wav"], [1, 2])
    assert count_leaked(train, [val], tmp_path, allowed=False) == 0
    with pytest.raises(DataError, match=r"1 of 2 training clips .* 1 of .*/test, first mine\.wav"):
        count_leaked(train, [val, test], tmp_path, allowed=False)
