"""Near snippets of other clips: against all pairs, whatever the shards; the mask of a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from avvp_dist.config import GroundConfig
from avvp_dist.errors import DataError
from avvp_dist.grounding.across import AcrossClips
from avvp_dist.grounding.job import ground
from avvp_dist.grounding.version import Grounding
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet

LIMITS = {"audio": 0.8, "visual": 0.7}
CLIPS, SNIPPETS = 30, 4


def corpus() -> list[Clip]:
    """Clips with equal ones, a short one, and vectors without direction among them."""
    rng = np.random.default_rng(5)
    clips = []
    for number in range(CLIPS):
        streams = {
            "audio": rng.standard_normal((SNIPPETS, 4)),
            "visual": rng.standard_normal((SNIPPETS, 3)),
        }
        clips.append(Clip(f"c{number}", streams, length=2 if number == 3 else SNIPPETS))
    clips[7].streams["audio"][:] = clips[8].streams["audio"]
    clips[9].streams["audio"][1] = 0
    return clips


def grounded(folder: Path, clips_per_shard: int, across: int, limit: float = 0.0) -> Grounding:
    shards = write_shard_set(corpus(), folder, clips_per_shard=clips_per_shard)
    limits = {name: limit or value for name, value in LIMITS.items()}
    text = "\n".join(f"  {name}: {value}" for name, value in limits.items())
    (folder / "thresholds.yaml").write_text(f"extractor: ''\nthresholds:\n{text}\n")
    config = GroundConfig(shards=str(folder), across=across, workers=1)
    config.tracking.enabled = False
    ground(config)
    return Grounding(shards)


def all_pairs(folder: Path, stream: str, limit: float) -> NDArray[np.bool_]:
    """Which snippets of different clips reach the threshold, `[N, T, N, T]`."""
    shards = ShardSet(folder)
    x = shards.gather(np.arange(CLIPS))[stream].astype(np.float64)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    unit = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
    near = np.einsum("atd,bsd->atbs", unit, unit) >= limit
    real = (norm[..., 0] > 0) & (np.arange(SNIPPETS) < shards.lengths[:, None])
    near &= real[:, :, None, None] & real
    near[np.arange(CLIPS), :, np.arange(CLIPS), :] = False
    return near


@pytest.mark.parametrize("clips_per_shard", [30, 7])
@pytest.mark.parametrize("limit", [0.0, -0.5])
def test_all_near_snippets_are_found(tmp_path: Path, clips_per_shard: int, limit: float) -> None:
    grounding = grounded(tmp_path, clips_per_shard, across=CLIPS * SNIPPETS, limit=limit)
    across = grounding.across(SNIPPETS)
    for name in LIMITS:
        expected = all_pairs(tmp_path, name, limit or LIMITS[name])
        np.testing.assert_array_equal(across.mask(name, np.arange(CLIPS)), expected)
        assert grounding.summary["across"][f"near/{name}"] == expected.sum() > 0
        assert grounding.summary["across"][f"cut off/{name}"] == 0


def test_a_batch_is_a_part_of_it_in_its_own_order(tmp_path: Path) -> None:
    across = grounded(tmp_path, 11, across=64).across(SNIPPETS)
    clips = np.array([8, 29, 0, 7, 3])
    expected = all_pairs(tmp_path, "audio", LIMITS["audio"])[clips][:, :, clips]
    found = across.mask("audio", clips)
    np.testing.assert_array_equal(found, expected)
    assert found[0, :, 3].any(), "clips 8 and 7 are alike"


def test_only_the_nearest_are_kept(tmp_path: Path) -> None:
    few = grounded(tmp_path / "few", 11, across=2)
    counts = few.summary["across"]
    expected = all_pairs(tmp_path / "few", "audio", LIMITS["audio"]).sum((2, 3))
    assert counts["near/audio"] == np.minimum(expected, 2).sum()
    assert counts["cut off/audio"] == (expected > 2).sum() > 0
    other = grounded(tmp_path / "other", 30, across=2)
    batch = np.arange(CLIPS)
    for name in LIMITS:
        np.testing.assert_array_equal(
            few.across(SNIPPETS).mask(name, batch), other.across(SNIPPETS).mask(name, batch)
        )


def test_a_second_run_redoes_nothing_and_more_neighbours_do(tmp_path: Path) -> None:
    grounding = grounded(tmp_path, 11, across=2)
    files = sorted(Path(grounding.place).glob("*.across.npz"))
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    assert len(files) == 3
    config = GroundConfig(shards=str(tmp_path), across=2, workers=1)
    config.tracking.enabled = False
    ground(config)
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in files] == before
    config.across = 3
    ground(config)
    assert all(path.stat().st_mtime_ns > was for path, (was, _) in zip(files, before, strict=True))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    grounding = grounded(tmp_path / "with", 30, across=2)
    path = Path(grounding.place) / "shard-000000.across.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=f"{path} has another SHA-256"):
        grounding.across(SNIPPETS)
    path.unlink()
    with pytest.raises(DataError, match=f"{path} is missing"):
        grounding.across(SNIPPETS)
    without = grounded(tmp_path / "without", 30, across=0)
    with pytest.raises(DataError, match=r"no near snippets of other clips.*across=32"):
        without.across(SNIPPETS)


def test_a_snippet_without_neighbours() -> None:
    part = {
        "audio/starts": np.zeros(5, np.uint32), "audio/near": np.zeros(0, np.uint32)
    }  # fmt: skip
    assert not AcrossClips([part], 2).mask("audio", np.array([1, 0])).any()
