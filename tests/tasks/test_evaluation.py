"""Evaluation: thresholds by class, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.config import EvaluateConfig, ParserConfig, TrackingConfig
from avvp_dist.errors import CheckpointError, ConfigError, DataError
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.evaluation.scores import score
from avvp_dist.models.export import build_parser, save_model
from avvp_dist.models.specification import ParserSpec
from avvp_dist.shards.schema import LLP_CLASSES
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.evaluation import evaluate


def config_of(
    packed: dict[str, ShardSet], features: Path, out: Path, **changes: Any
) -> EvaluateConfig:
    spec = ParserSpec(
        parser=ParserConfig(width=16),
        dims=packed["test"].dims,
        snippets=10,
        classes=list(LLP_CLASSES),
        extractor="simulated",
        manifest="none",
    )
    spec = replace(spec, **changes)
    save_model(out / "model", build_parser(spec).state_dict(), spec)
    return EvaluateConfig(
        parser=str(out / "model"),
        shards=str(packed["test"].folder),
        annotations=str(features),
        out=str(out / "scores"),
        tracking=TrackingConfig(enabled=False),
    )


@pytest.mark.parametrize(
    "changes", [{"dims": {"audio": 3, "visual": 4}}, {"extractor": "another"}, {"classes": ["Dog"]}]
)
def test_a_parser_of_other_features_or_classes_is_refused(
    packed: dict[str, ShardSet], features: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path / "model")):
        evaluate(config_of(packed, features, tmp_path, **changes))


def test_an_unknown_clip_to_draw_is_named(
    packed: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    config = config_of(packed, features, tmp_path)
    config.clip = "nobody"
    with pytest.raises(ConfigError, match="clip=nobody"):
        evaluate(config)


def test_a_file_gives_each_class_its_threshold(
    packed: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    config = config_of(packed, features, tmp_path)
    at_half = evaluate(config)
    first = Predictions.load(tmp_path / "scores" / "predictions.npz")
    # Such that half of the snippets are on in every class.
    limits = np.median(first.frame_prob, (0, 1))
    np.save(tmp_path / "limits.npy", limits)
    config.threshold = str(tmp_path / "limits.npy")
    found = evaluate(config)
    truth = read_annotations(features, "test").events
    assert truth is not None
    assert found == score(first.decided("video", limits), truth) != at_half
    written = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert np.array_equal(np.float32(written["threshold"]), limits)


def test_a_threshold_file_of_other_classes_is_refused_before_anything_is_done(
    packed: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    config = config_of(packed, features, tmp_path)
    np.save(tmp_path / "limits.npy", np.full((2, 3), 0.5))
    config.threshold = str(tmp_path / "limits.npy")
    with pytest.raises(DataError, match=r"limits\.npy is \[2, 3\]"):
        evaluate(config)
    assert not (tmp_path / "scores").exists()
