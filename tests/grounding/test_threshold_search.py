"""The search for thresholds: each target is met on the corpus, and dense labels must be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.config import CalibrateConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.grounding.calibration import calibration
from avvp_dist.grounding.components import components, join_strength, similarity
from avvp_dist.grounding.threshold_search import dense_events
from avvp_dist.shards.shard_set import ShardSet


def config(shards: ShardSet, **keys: Any) -> CalibrateConfig:
    return CalibrateConfig(shards=str(shards.folder), **{"workers": 1, **keys})


def cosines_across(shards: ShardSet, stream: str) -> NDArray[np.floating]:
    """Cosine of every two snippets of different clips."""
    x = shards.gather(np.arange(len(shards)))[stream].astype(np.float64)
    rows = (x / np.linalg.norm(x, axis=-1, keepdims=True)).reshape(-1, x.shape[-1])
    owner = np.arange(len(shards)).repeat(shards.snippets)
    cosine: NDArray[np.floating] = (rows @ rows.T)[owner[:, None] != owner]
    return cosine


def groups(shards: ShardSet, thresholds: dict[str, float], **how: Any) -> NDArray[np.uint8]:
    """Components of all clips of a shard set under thresholds."""
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
        # On the sample it is met up to four decimals of the threshold, on the corpus roughly.
        assert found.rates[name]["across"] == pytest.approx(rate, abs=0.002)
        assert found.rates[name]["across"] <= rate
        assert (cosines_across(shards, name) >= limit).mean() == pytest.approx(rate, rel=0.6)


@pytest.mark.parametrize("grouping", ["components", "average-link"])
@pytest.mark.parametrize(("target", "goal"), [("components", 4.0), ("one-component", 0.3)])
def test_the_components_of_the_corpus_meet_the_goal(
    packed: dict[str, ShardSet], grouping: str, target: str, goal: float
) -> None:
    shards = packed["train"]
    key = {"components": "components_per_clip", "one-component": "one_component_fraction"}[target]
    asked = config(shards, target=target, grouping=grouping, **{key: goal})
    found = calibration(shards, asked)
    ids = groups(shards, found.thresholds, grouping=grouping)
    counts = np.array([len(set(row)) for row in ids.tolist()])
    value = counts.mean() if target == "components" else (counts == 1).mean()
    assert value == pytest.approx(goal, rel=0.25)


def test_no_false_link_rate_has_a_better_f1_than_the_search_by_labels(
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
                        shares, same = bool((clip[j] & clip[k]).any()), labels[j] == labels[k]
                        hits, claimed, true = (
                            hits + (shares and same),
                            claimed + same,
                            true + shares,
                        )
        return 2 * hits / (claimed + true)

    assert found.f1 == pytest.approx(f1(found.thresholds))
    for rate in (0.005, 0.01, 0.05, 0.1, 0.3):
        other = calibration(shards, config(shards, false_link_rate=rate)).thresholds
        assert found.f1 >= f1(other)


def test_dense_labels_must_be_there(packed: dict[str, ShardSet], features: Path) -> None:
    with pytest.raises(ConfigError, match=r"annotations must be given"):
        dense_events(packed["val"], config(packed["val"], target="labels"))
    wrong = config(packed["train"], target="labels", annotations=str(features))
    with pytest.raises(DataError, match=r"split=val of .* lacks 96 of 96 clips of "):
        dense_events(packed["train"], wrong)
