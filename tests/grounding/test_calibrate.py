"""Thresholds: the false-link rate they are chosen for, and the files they are written to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from omegaconf import OmegaConf

from avvp_dist.config import CalibrateConfig
from avvp_dist.data.schema import Clip
from avvp_dist.data.shards import ShardSet
from avvp_dist.data.writing import write_shard_set
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.grounding.calibrate import calibrate, calibrations


def config(shards: ShardSet, out: Path | str = "", **keys: Any) -> CalibrateConfig:
    made = CalibrateConfig(shards=str(shards.folder), out=str(out), **keys)
    made.tracking.enabled = False
    return made


def cosines_across(
    shards: ShardSet, stream: str, clips: NDArray[np.integer]
) -> NDArray[np.floating]:
    """Similarity of every two snippets of different ones of `clips`."""
    x = shards.gather(clips)[stream].astype(np.float64)
    rows = (x / np.linalg.norm(x, axis=-1, keepdims=True)).reshape(-1, x.shape[-1])
    owner = np.arange(len(clips)).repeat(shards.snippets)
    cosine: NDArray[np.floating] = (rows @ rows.T)[owner[:, None] != owner]
    return cosine


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_a_threshold_has_its_false_link_rate(packed: dict[str, ShardSet], rate: float) -> None:
    shards = packed["train"]
    found = calibrations(shards, config(shards, false_link_rate=rate))
    assert sorted(found) == ["audio", "visual"]
    for name, calibration in found.items():
        # On the sample it is met up to the four digits of a threshold, in the corpus nearly.
        assert calibration.rates["across"] == pytest.approx(rate, abs=0.002)
        everything = cosines_across(shards, name, np.arange(len(shards)))
        assert (everything >= calibration.threshold).mean() == pytest.approx(rate, rel=0.6)


def test_snippets_of_one_clip_are_more_alike(packed: dict[str, ShardSet]) -> None:
    found = calibrations(packed["train"], config(packed["train"]))
    for calibration in found.values():
        assert calibration.rates["within"] > 5 * calibration.rates["across"]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Clips of one snippet: a sample of one snippet a clip is all there is."""
    rng = np.random.default_rng(3)

    def clips() -> Iterator[Clip]:
        for number in range(60):
            features = {"audio": abs(rng.standard_normal((1, 5))), "clap": rng.random((1, 8))}
            yield Clip(f"c{number}", features)

    return write_shard_set(clips(), tmp_path_factory.mktemp("single"), clips_per_shard=25)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
def test_a_threshold_is_the_quantile_over_all_pairs(single: ShardSet, rate: float) -> None:
    streams = ["audio", "clap"]
    found = calibrations(single, config(single, streams=streams, false_link_rate=rate))
    for name in streams:
        pairs = cosines_across(single, name, np.arange(len(single)))
        assert len(found[name].across) == len(pairs) == 60 * 59
        assert found[name].threshold == pytest.approx(np.quantile(pairs, 1 - rate), abs=6e-5)


def test_small_samples_are_drawn_from_the_whole_set(single: ShardSet) -> None:
    some = config(single, streams=["audio"], queries=10, database=20)
    found = calibrations(single, some)["audio"]
    everything = cosines_across(single, "audio", np.arange(60))
    assert 10 * 20 - 10 <= len(found.across) <= 10 * 20
    nearest = np.abs(everything[:, None] - found.across).min(0)
    assert nearest.max() < 1e-5
    some.seed = 1
    assert calibrations(single, some)["audio"].threshold != found.threshold


def test_padding_is_not_sampled(tmp_path: Path) -> None:
    ones, padding = np.eye(4)[:1], np.full((3, 4), 7.0)
    features = np.concatenate([ones, padding])
    clips = [Clip(f"c{n}", {"audio": np.roll(features, n, 1)}, length=1) for n in range(4)]
    shards = write_shard_set(clips, tmp_path)
    found = calibrations(shards, config(shards, streams=["audio"]))["audio"]
    assert len(found.within) == 0
    assert np.unique(found.across).tolist() == [0]


def test_the_file_says_what_it_was_made_from(
    packed: dict[str, ShardSet], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shards, out = packed["train"], tmp_path / "mine" / "thresholds.yaml"
    assert calibrate(config(shards, out, false_link_rate=0.05)) == out
    written: Any = OmegaConf.to_container(OmegaConf.load(out))
    found = calibrations(shards, config(shards, false_link_rate=0.05))
    assert written["thresholds"] == {name: c.threshold for name, c in found.items()}
    assert written["rates"] == {name: c.rates for name, c in found.items()}
    assert (written["extractor"], written["manifest"]) == ("simulated", shards.digest)
    assert written["config"]["false_link_rate"] == 0.05
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert f"audio: threshold {found['audio'].threshold:.4f}" in capfd.readouterr().out


def test_the_same_seed_gives_the_same_file(packed: dict[str, ShardSet], tmp_path: Path) -> None:
    files = []
    for seed in (5, 5, 6):
        path = calibrate(config(packed["train"], tmp_path / "thresholds.yaml", seed=seed))
        files.append(path.read_bytes())
    assert files[0] == files[1] != files[2]


def test_an_unknown_stream_is_named(packed: dict[str, ShardSet], tmp_path: Path) -> None:
    wrong = config(packed["train"], tmp_path / "thresholds.yaml", streams=["audio", "motion"])
    with pytest.raises(ConfigError, match=r"stream motion.*\['audio', 'visual'\]"):
        calibrate(wrong)
    assert not (tmp_path / "thresholds.yaml").exists()


def test_one_clip_is_not_enough(tmp_path: Path) -> None:
    shards = write_shard_set([Clip("c", {"audio": np.ones((2, 3))})], tmp_path)
    with pytest.raises(DataError, match="1 clip, calibration needs two"):
        calibrations(shards, config(shards, streams=["audio"]))
