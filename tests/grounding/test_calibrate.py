"""The calibration stage: the files it writes, and what it does with a useless outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from avvp_dist.config import CalibrateConfig
from avvp_dist.errors import ConfigError
from avvp_dist.grounding.calibrate import calibrate
from avvp_dist.grounding.calibration import calibration
from avvp_dist.grounding.thresholds import ThresholdsFile
from avvp_dist.shards.shard_set import ShardSet


def config(shards: ShardSet, out: Path, **keys: Any) -> CalibrateConfig:
    made = CalibrateConfig(shards=str(shards.folder), out=str(out), **{"workers": 1, **keys})
    made.tracking.enabled = False
    return made


def test_the_file_tells_what_it_was_made_from(
    packed: dict[str, ShardSet], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shards, out = packed["train"], tmp_path / "mine" / "thresholds.yaml"
    asked = config(shards, out, false_link_rate=0.05, seed=3)
    assert calibrate(asked) == out
    written: Any = OmegaConf.to_container(OmegaConf.load(out))
    found = calibration(shards, asked)
    assert written["thresholds"] == found.thresholds
    assert written["rates"] == found.rates
    assert written["components"] == found.profile.figures
    assert (written["extractor"], written["manifest"]) == ("simulated", shards.digest)
    assert (written["sample"]["clips"], written["sample"]["seed"]) == (96, 3)
    assert written["sample"]["pairs"]["within"]["audio"] == 96 * 45
    assert written["joining"]["rule"] == "or"
    assert written["config"]["false_link_rate"] == 0.05
    read = ThresholdsFile.read(out)
    assert (read.thresholds, read.extractor) == (found.thresholds, "simulated")
    for name in ("thresholds.png", "thresholds.components.png"):
        assert out.with_name(name).read_bytes().startswith(b"\x89PNG")
    limit = found.thresholds["audio"]
    assert f"audio: threshold {limit:.4f}" in capfd.readouterr().out


def test_the_same_seed_gives_the_same_file(packed: dict[str, ShardSet], tmp_path: Path) -> None:
    files = []
    for seed in (5, 5, 6):
        path = calibrate(config(packed["train"], tmp_path / "t.yaml", seed=seed, clips=50))
        files.append(path.read_bytes())
    assert files[0] == files[1] != files[2]


def test_a_useless_outcome_leaves_figures_but_no_thresholds(
    packed: dict[str, ShardSet], tmp_path: Path
) -> None:
    out = tmp_path / "thresholds.yaml"
    with pytest.raises(ConfigError, match=r"99.9% of components are one snippet"):
        calibrate(config(packed["train"], out, false_link_rate=0, rule="and"))
    assert not out.exists()
    assert out.with_suffix(".png").exists(), "the picture shows why"
