"""Thresholds: what they are chosen for, what is refused, and the files they are written to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from omegaconf import OmegaConf

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.config import CalibrateConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.grounding.calibrate import calibrate, calibration
from avvp_dist.grounding.components import components, join_strength, similarity
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet


def config(shards: ShardSet, out: Path | str = "", **keys: Any) -> CalibrateConfig:
    made = CalibrateConfig(shards=str(shards.folder), out=str(out), **{"workers": 1, **keys})
    made.tracking.enabled = False
    return made


def cosines_across(shards: ShardSet, stream: str) -> NDArray[np.floating]:
    """Similarity of every two snippets of different clips."""
    x = shards.gather(np.arange(len(shards)))[stream].astype(np.float64)
    rows = (x / np.linalg.norm(x, axis=-1, keepdims=True)).reshape(-1, x.shape[-1])
    owner = np.arange(len(shards)).repeat(shards.snippets)
    cosine: NDArray[np.floating] = (rows @ rows.T)[owner[:, None] != owner]
    return cosine


def groups(shards: ShardSet, thresholds: dict[str, float], **how: Any) -> NDArray[np.uint8]:
    """Components of all clips under thresholds."""
    streams = shards.gather(np.arange(len(shards)))
    cosines = {name: similarity(streams[name]).cosine for name in thresholds}
    return components(join_strength(cosines, thresholds, "or"), **how)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_a_threshold_has_its_false_link_rate(packed: dict[str, ShardSet], rate: float) -> None:
    shards = packed["train"]
    found = calibration(shards, config(shards, false_link_rate=rate))
    assert sorted(found.thresholds) == ["audio", "visual"]
    for name, limit in found.thresholds.items():
        assert round(limit, 4) == limit
        # On the sample it is met up to the four digits of a threshold, in the corpus nearly.
        assert found.rates[name]["across"] == pytest.approx(rate, abs=0.002)
        assert found.rates[name]["across"] <= rate
        assert (cosines_across(shards, name) >= limit).mean() == pytest.approx(rate, rel=0.6)
    joint = found.rates["or"]["across"]
    single = [found.rates[name]["across"] for name in found.thresholds]
    assert max(single) <= joint <= sum(single)


def test_snippets_of_one_clip_are_more_alike(packed: dict[str, ShardSet]) -> None:
    found = calibration(packed["train"], config(packed["train"]))
    for name in found.thresholds:
        assert found.rates[name]["within"] > 5 * found.rates[name]["across"]


@pytest.mark.parametrize("grouping", ["components", "average-link"])
@pytest.mark.parametrize(("target", "goal"), [("components", 4.0), ("one-component", 0.3)])
def test_thresholds_can_be_chosen_for_a_profile(
    packed: dict[str, ShardSet], grouping: str, target: str, goal: float
) -> None:
    shards = packed["train"]
    key = {"components": "components_per_clip", "one-component": "one_component_share"}[target]
    asked = config(shards, target=target, grouping=grouping, **{key: goal})
    found = calibration(shards, asked)
    ids = groups(shards, found.thresholds, grouping=grouping)
    counts = np.array([len(set(row)) for row in ids.tolist()])
    value = counts.mean() if target == "components" else (counts == 1).mean()
    assert found.profile.figures[key] == pytest.approx(value)
    assert value == pytest.approx(goal, rel=0.25)


def test_thresholds_can_be_chosen_by_dense_labels(
    packed: dict[str, ShardSet], features: Path
) -> None:
    shards = packed["val"]
    asked = config(shards, target="labels", annotations=str(features))
    found = calibration(shards, asked)
    annotated = read_annotations(features, "val")
    assert annotated.events is not None
    rows = [annotated.ids.index(clip) for clip in shards.ids]
    events = annotated.events[rows].any(2)

    def f1(thresholds: dict[str, float]) -> float:
        ids = groups(shards, thresholds)
        hits = claimed = true = 0
        for labels, clip in zip(ids.tolist(), events, strict=True):
            for j in range(10):
                for k in range(j):
                    if clip[j].any() and clip[k].any():
                        share, same = bool((clip[j] & clip[k]).any()), labels[j] == labels[k]
                        hits, claimed, true = hits + (share and same), claimed + same, true + share
        return 2 * hits / (claimed + true)

    assert found.f1 == pytest.approx(f1(found.thresholds))
    for rate in (0.005, 0.01, 0.05, 0.1, 0.3):
        other = calibration(shards, config(shards, false_link_rate=rate)).thresholds
        assert found.f1 >= f1(other)


def test_dense_labels_must_be_there(packed: dict[str, ShardSet], features: Path) -> None:
    with pytest.raises(ConfigError, match=r"annotations must be given"):
        calibration(packed["val"], config(packed["val"], target="labels"))
    wrong = config(packed["train"], target="labels", annotations=str(features))
    with pytest.raises(DataError, match=r"split=val of .* lacks 96 of 96 clips of "):
        calibration(packed["train"], wrong)


def test_what_would_tell_nothing_is_refused(
    packed: dict[str, ShardSet], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shards, out = packed["train"], tmp_path / "thresholds.yaml"
    with pytest.raises(ConfigError, match=r"99.9% of components are one snippet.*Raise"):
        calibrate(config(shards, out, false_link_rate=0, rule="and"))
    with pytest.raises(ConfigError, match=r"100.0% of clips are one component.*other_clips=true"):
        calibrate(config(shards, out, false_link_rate=1, other_clips=False))
    assert not out.exists()
    assert out.with_suffix(".png").exists(), "the picture shows why"
    calibrate(config(shards, out, false_link_rate=1))
    assert "100.0% of clips are one component: only other clips are negative" in (
        capfd.readouterr().out
    )


def test_near_duplicates_do_not_make_the_quantile(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, 4, 16))
    clips = [Clip(f"c{n}", {"audio": features[n % 40]}) for n in range(200)]
    shards = write_shard_set(clips, tmp_path)
    found = calibration(shards, config(shards, streams=["audio"]))
    assert (found.sample.drawn, found.sample.near_duplicates) == (200, 160)
    assert found.thresholds["audio"] < 0.9
    kept = config(shards, streams=["audio"], duplicate_similarity=1.0)
    assert calibration(shards, kept).sample.near_duplicates == 0


def test_the_file_says_what_it_was_made_from(
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


def test_an_unknown_stream_is_named(packed: dict[str, ShardSet], tmp_path: Path) -> None:
    wrong = config(packed["train"], tmp_path / "thresholds.yaml", streams=["audio", "motion"])
    with pytest.raises(ConfigError, match=r"stream motion.*\['audio', 'visual'\]"):
        calibrate(wrong)
    assert not (tmp_path / "thresholds.yaml").exists()


def test_one_clip_is_not_enough(tmp_path: Path) -> None:
    shards = write_shard_set([Clip("c", {"audio": np.ones((2, 3))})], tmp_path)
    with pytest.raises(DataError, match="1 clip, calibration needs two"):
        calibration(shards, config(shards, streams=["audio"]))
