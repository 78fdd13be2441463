"""The report of the label study: comparisons, choice by validation, and what it claims."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avvp_dist.config import LabelsStudyConfig
from avvp_dist.evaluation.scores import LEVELS, STREAM_SCORES
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.studies.arms import RANDOM, Arm, Corpus, Encoder
from avvp_dist.studies.labels_report import (
    PointScores,
    Report,
    _tables,
    _write_csv,
    conclusion,
    growing,
)

KEYS = [f"{level}_{stream}" for level in LEVELS for stream in STREAM_SCORES]
CORPORA = [Corpus("train", ("/a",), (100,)), Corpus("train+wide", ("/a", "/b"), (100, 300))]
PLAIN, FROZEN, TUNED = (
    Arm(),
    Arm(Encoder(RANDOM, CORPORA[0])),
    Arm(Encoder(RANDOM, CORPORA[0]), True),
)
SMALL, LARGE = (Arm(Encoder("multi", corpus)) for corpus in CORPORA)
SEEDS = 6


def scores(gain: float, val: float | None = None, seed: int = 0) -> PointScores:
    """Scores of 40 clips around 60 + gain, with noise of their own; `val` counts on validation."""
    noise = np.random.default_rng(seed).normal(0, 1, (SEEDS, 2, 40))
    gains = {"val": gain if val is None else val, "test": gain}
    return {
        number + 1: {
            split: dict.fromkeys(KEYS, 60 + gains[split] + noise[number, row])
            for row, split in enumerate(gains)
        }
        for number in range(SEEDS)
    }


def report(packed: dict[str, ShardSet], found: dict[Arm, PointScores]) -> Report:
    arms = [PLAIN, FROZEN, TUNED, SMALL, LARGE]
    points = {(arm, 120): seeds for arm, seeds in found.items()}
    return Report(
        config=LabelsStudyConfig(seeds=SEEDS, learning_rates=[1e-3]),
        shards=packed,
        arms=arms,
        counts=[120],
        rates=dict.fromkeys(points, 1e-3),
        scores=points,
        probes={"multi, train": {"clip_map": [0.5, 0.6]}},
    )


def test_a_gain_is_claimed_over_the_better_random_control_alone(
    packed: dict[str, ShardSet],
) -> None:
    # On validation the tuned control is the better one, and the larger corpus the better arm.
    found = report(
        packed,
        {
            PLAIN: scores(0, seed=1),
            FROZEN: scores(0, seed=2),
            TUNED: scores(2, seed=3),
            SMALL: scores(5, val=1, seed=4),
            LARGE: scores(4, val=3, seed=5),
        },
    )
    assert (found.baseline(120), found.chosen(120)) == (TUNED, LARGE)
    (claim, *_) = [line for line in conclusion(found) if "labels: of the" in line]
    assert "`multi, train+wide, frozen` validates best" in claim
    assert "better random control, `random, tuned`, by +2.1 [" in claim
    assert claim.endswith("So pretraining helps here.")


def test_without_a_gain_none_is_claimed(packed: dict[str, ShardSet]) -> None:
    same = {arm: scores(0, seed=n) for n, arm in enumerate([PLAIN, FROZEN, TUNED, SMALL, LARGE])}
    (claim, *_) = [line for line in conclusion(report(packed, same)) if "labels: of the" in line]
    assert "So no gain is shown" in claim
    same[SMALL], same[LARGE] = scores(-3, val=1, seed=9), scores(-3, val=0, seed=8)
    (claim, *_) = [line for line in conclusion(report(packed, same)) if "labels: of the" in line]
    assert "So pretraining harms here" in claim


def test_several_intervals_are_said_to_hold_less_often_at_once(
    packed: dict[str, ShardSet],
) -> None:
    found = report(packed, {FROZEN: scores(0), SMALL: scores(1, seed=1)})
    assert not any("hold at once" in line for line in conclusion(found))
    more = {(arm, n): seeds for (arm, _), seeds in found.scores.items() for n in (120, 500)}
    several = replace(found, counts=[120, 500, 900], scores=more)  # none of 900 is finished
    (line,) = [line for line in conclusion(several) if "hold at once" in line]
    assert "All 2 hold at once in 90 % of studies" in line


def test_only_seeds_that_both_arms_have_are_compared(packed: dict[str, ShardSet]) -> None:
    found = report(packed, {FROZEN: scores(0, seed=1), SMALL: scores(1, seed=1)})
    del found.scores[SMALL, 120][2], found.scores[FROZEN, 120][3]
    difference = found.difference(SMALL, FROZEN, 120, "test")
    assert difference is not None and difference.seeds == SEEDS - 2
    assert difference.mean == pytest.approx(1)
    assert found.difference(LARGE, FROZEN, 120, "test") is None


def test_corpora_that_grow_are_fitted_and_the_fit_says_how_far_it_goes(
    packed: dict[str, ShardSet],
) -> None:
    found = report(packed, {FROZEN: scores(0), SMALL: scores(1, seed=1), LARGE: scores(9, seed=2)})
    ((name, clips, values, labels),) = growing(found)
    assert (name, clips, labels) == ("multi, frozen", [100, 400], 120)
    assert values.shape == (2, SEEDS)
    (line,) = [line for line in conclusion(found) if "the score grows" in line]
    assert "At 1,600 clips" in line and "a fit of 2 sizes is not to be trusted beyond" in line


def test_the_table_and_the_csv_have_every_arm(packed: dict[str, ShardSet], tmp_path: Path) -> None:
    found = report(packed, {PLAIN: scores(0), FROZEN: scores(1, seed=1), SMALL: scores(2, seed=2)})
    rows = [line.strip("| ").split(" | ") for line in _tables(found) if line.startswith("| ")]
    head, *body = rows
    assert head[0] == "120 labels" and "Type@AV over `random, frozen`" in head
    cells = {row[0]: row for row in body}
    assert list(cells) == [
        "control: no encoder",
        "control: random, frozen",
        "control: random, tuned",
        "multi, train, frozen",
        "multi, train+wide, frozen",
    ]
    assert cells["multi, train, frozen"][1] == str(SEEDS)
    assert cells["multi, train, frozen"][-3].startswith("+1.0 [")
    assert cells["control: random, frozen"][-3] == "-"
    assert cells["multi, train+wide, frozen"][1:4] == ["0", "-", "-"]
    _write_csv(tmp_path / "study.csv", found)
    with (tmp_path / "study.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * SEEDS
    assert (lines[-1]["objective"], lines[-1]["corpus_clips"], lines[-1]["lr"]) == (
        "multi",
        "100",
        "0.001",
    )
