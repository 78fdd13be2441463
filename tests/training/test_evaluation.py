"""What evaluation refuses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from avvp_dist.config import EvaluateConfig, Parser, Tracking
from avvp_dist.data.schema import LLP_CLASSES
from avvp_dist.data.shards import ShardSet
from avvp_dist.errors import CheckpointError, ConfigError
from avvp_dist.models.export import build_parser, save_model
from avvp_dist.training.evaluation import evaluate


def config_of(
    packed: dict[str, ShardSet], features: Path, out: Path, **meta: object
) -> EvaluateConfig:
    full = {
        "kind": "parser",
        "parser": asdict(Parser(width=16)),
        "pretrained": None,
        "dims": packed["test"].dims,
        "snippets": 10,
        "classes": list(LLP_CLASSES),
        "extractor": "simulated",
        **meta,
    }
    save_model(out / "model", build_parser(full).state_dict(), full)
    return EvaluateConfig(
        parser=str(out / "model"),
        shards=str(packed["test"].folder),
        annotations=str(features),
        out=str(out / "scores"),
        tracking=Tracking(enabled=False),
    )


@pytest.mark.parametrize(
    "meta", [{"dims": {"audio": 3, "visual": 4}}, {"extractor": "another"}, {"classes": ["Dog"]}]
)
def test_a_parser_of_other_features_or_classes_is_refused(
    packed: dict[str, ShardSet], features: Path, tmp_path: Path, meta: dict[str, object]
) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path / "model")):
        evaluate(config_of(packed, features, tmp_path, **meta))


def test_an_unknown_clip_to_draw_is_named(
    packed: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    config = config_of(packed, features, tmp_path)
    config.clip = "nobody"
    with pytest.raises(ConfigError, match="clip=nobody"):
        evaluate(config)
