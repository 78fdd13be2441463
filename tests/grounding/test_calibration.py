"""Calibration: rates and profile on the sample, and outcomes that training could not learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.config import CalibrateConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.grounding.calibration import calibration, check_informative
from avvp_dist.grounding.profile import ComponentProfile
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet


def config(shards: ShardSet, **keys: Any) -> CalibrateConfig:
    return CalibrateConfig(shards=str(shards.folder), **{"workers": 1, **keys})


def test_snippets_of_one_clip_are_joined_more_often(packed: dict[str, ShardSet]) -> None:
    found = calibration(packed["train"], config(packed["train"]))
    for name in found.thresholds:
        assert found.rates[name]["within"] > 5 * found.rates[name]["across"]


@pytest.mark.parametrize("rule", ["or", "and"])
def test_the_rate_of_the_rule_follows_from_those_of_the_streams(
    packed: dict[str, ShardSet], rule: str
) -> None:
    found = calibration(packed["train"], config(packed["train"], false_link_rate=0.05, rule=rule))
    rates = [found.rates[name]["across"] for name in found.thresholds]
    if rule == "or":
        assert max(rates) <= found.rates["or"]["across"] <= sum(rates)
    else:
        assert found.rates["and"]["across"] <= min(rates)


def test_near_duplicates_do_not_raise_the_threshold(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, 4, 16))
    clips = [Clip(f"c{n}", {"audio": features[n % 40]}) for n in range(200)]
    shards = write_shard_set(clips, tmp_path)
    found = calibration(shards, config(shards, streams=["audio"]))
    assert (found.sample.sampled, found.sample.near_duplicates) == (200, 160)
    assert found.thresholds["audio"] < 0.9
    kept = config(shards, streams=["audio"], duplicate_similarity=1.0)
    assert calibration(shards, kept).sample.near_duplicates == 0


def test_components_that_are_all_alike_are_refused() -> None:
    keys = CalibrateConfig(shards="x")
    apart = ComponentProfile.of(np.tile(np.arange(4, dtype=np.uint8), (5, 1)))
    with pytest.raises(ConfigError, match=r"100\.0% of components are one snippet.*Raise"):
        check_informative(apart, keys)
    check_informative(ComponentProfile.of(np.array([[0, 0, 2, 2]], np.uint8)), keys)


def test_clips_of_one_component_need_negatives_from_other_clips(
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = ComponentProfile.of(np.zeros((5, 4), np.uint8))
    with pytest.raises(ConfigError, match=r"100\.0% of clips are one component.*other_clips=true"):
        check_informative(whole, CalibrateConfig(shards="x", other_clips=False))
    check_informative(whole, CalibrateConfig(shards="x"))
    assert "100.0% of clips are one component: only other clips are negative" in (
        capsys.readouterr().out
    )


def test_an_unknown_stream_is_named(packed: dict[str, ShardSet]) -> None:
    with pytest.raises(ConfigError, match=r"stream motion.*\['audio', 'visual'\]"):
        calibration(packed["train"], config(packed["train"], streams=["audio", "motion"]))


def test_one_clip_is_not_enough(tmp_path: Path) -> None:
    shards = write_shard_set([Clip("c", {"audio": np.ones((2, 3))})], tmp_path)
    with pytest.raises(DataError, match="1 clip, calibration needs two"):
        calibration(shards, config(shards, streams=["audio"]))
