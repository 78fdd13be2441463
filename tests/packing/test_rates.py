"""Rates: streams of any rate onto the snippet grid, or refused; nothing is cut to fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avvp_dist.config import PackConfig, TrackingConfig
from avvp_dist.errors import AvvpError
from avvp_dist.packing.job import pack
from avvp_dist.packing.rates import to_snippets
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet

DIM = 4


def pack_rows(folder: Path, rates: dict[str, float], **rows: int) -> tuple[ShardSet, Any]:
    """Three clips with a number of rows in each stream, and what was packed."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.random((3, count, DIM), np.float32) for name, count in rows.items()}
    np.savez(folder / "features_train.npz", filenames=np.array(["a", "b", "c"]), **arrays)
    config = PackConfig(
        source=str(folder),
        out=str(folder / "out"),
        rates=rates,
        workers=1,
        tracking=TrackingConfig(enabled=False),
    )
    return pack(config), arrays


@pytest.mark.parametrize(
    ("rates", "rows", "message"),
    [
        ({}, {"audio": 10, "visual": 20}, r"audio 10, visual 20.*rates\.visual=2"),
        ({}, {"audio": 10, "visual": 80}, r"rates\.visual=8"),
        ({}, {"audio": 20, "visual": 10}, r"rates\.audio=2"),
        ({}, {"audio": 10, "visual": 9}, "audio 10, visual 9"),
        ({}, {"audio": 10, "motion": 5, "visual": 10}, r"rates\.audio=2 rates\.visual=2"),
        ({"visual": 2}, {"audio": 10, "visual": 21}, "audio 10, visual 21"),
        ({"visual": 2}, {"audio": 10, "visual": 10}, "audio 10, visual 10"),
        ({"visual": 4}, {"audio": 10, "visual": 20}, "audio 10, visual 20"),
        ({"visual": 2.5}, {"audio": 10, "visual": 25}, r"rates\.visual=2\.5: a rate is"),
        ({"visual": 0}, {"audio": 10, "visual": 10}, r"rates\.visual=0: a rate is"),
        ({"vision": 2}, {"audio": 10, "visual": 20}, r"rates\.vision: .* audio, visual"),
    ],
)
def test_streams_of_other_lengths_are_refused(
    rates: dict[str, float], rows: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(AvvpError, match=message):
        pack_rows(tmp_path, rates, **rows)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_rows_become_one_a_second(tmp_path: Path) -> None:
    packed, arrays = pack_rows(
        tmp_path, {"visual": 2, "motion": 0.5}, audio=10, visual=20, motion=5
    )
    assert packed.snippets == 10 and packed.lengths.tolist() == [10] * 3
    found = packed.gather(np.arange(3))
    np.testing.assert_array_equal(found["audio"], arrays["audio"].astype(np.float16))
    pooled = arrays["visual"].reshape(3, 10, 2, DIM).mean(2)
    np.testing.assert_allclose(found["visual"], pooled, atol=1e-3)
    np.testing.assert_array_equal(found["motion"], arrays["motion"].repeat(2, 1).astype(np.float16))


@given(seconds=st.integers(1, 12), rate=st.sampled_from([1, 2, 3, 8, 25, 1 / 2, 1 / 3]))
def test_no_row_is_lost(seconds: int, rate: float) -> None:
    count = round(seconds * rate) if rate >= 1 else seconds
    rows = np.random.default_rng(count).random((count, DIM))
    snippets = to_snippets(rows, rate)
    assert len(snippets) == (seconds if rate >= 1 else round(seconds / rate))
    np.testing.assert_allclose(snippets.mean(0), rows.mean(0), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e-5, 1e-3, 1.0, 1e4])
def test_values_of_any_usual_scale_keep_their_directions(scale: float, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((10, 128)) * scale
    rows[3] = 0
    packed = write_shard_set([Clip("a", {"audio": rows})], tmp_path)
    found = packed.gather(np.array([0]))["audio"][0].astype(float)
    kept = [n for n in range(10) if n != 3]
    norms = np.linalg.norm(found[kept], axis=1) * np.linalg.norm(rows[kept], axis=1)
    assert ((found[kept] * rows[kept]).sum(1) / norms).min() > 0.999


@pytest.mark.parametrize("scale", [1e-7, 1e-8, 1e-12, 1e-30])
@pytest.mark.parametrize("row", [None, 4])
def test_values_too_small_for_float16_are_refused(
    scale: float, row: int | None, tmp_path: Path
) -> None:
    rows = np.random.default_rng(0).standard_normal((10, 128))
    rows[slice(None) if row is None else row] *= scale
    with pytest.raises(AvvpError, match="clip a: stream audio has rows too small for float16"):
        write_shard_set([Clip("a", {"audio": rows})], tmp_path)


def test_an_iterators_clips_have_streams_of_one_length(tmp_path: Path) -> None:
    clip = Clip("a", {"audio": np.ones((10, DIM)), "visual": np.ones((9, DIM))})
    with pytest.raises(AvvpError, match=r"clip a: its streams differ in length, .* 10, visual 9"):
        write_shard_set([clip], tmp_path)
