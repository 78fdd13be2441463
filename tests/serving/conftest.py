"""Exports of random models over the streams of `packed`, and the MLflow models around them."""

from __future__ import annotations

from pathlib import Path

import pytest

from avvp_dist.config import EncoderConfig, ObjectiveConfig, ParserConfig
from avvp_dist.models.export import build_encoder, build_parser, save_model
from avvp_dist.models.specification import EncoderSpec, ParserSpec
from avvp_dist.shards.schema import LLP_CLASSES
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tracking.packaging import package


@pytest.fixture(scope="session")
def parser_model(packed: dict[str, ShardSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parser with fresh weights as an MLflow model."""
    spec = ParserSpec(
        parser=ParserConfig(width=16),
        dims=packed["val"].dims,
        snippets=10,
        classes=list(LLP_CLASSES),
        extractor="simulated",
        manifest="none",
    )
    folder = tmp_path_factory.mktemp("parser")
    save_model(folder / "model", build_parser(spec).state_dict(), spec)
    return package(folder / "model", folder / "mlflow")


@pytest.fixture(scope="session")
def encoder_model(packed: dict[str, ShardSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with fresh weights as an MLflow model."""
    spec = EncoderSpec(
        encoder=EncoderConfig(size="tiny"),
        objective=ObjectiveConfig(),
        dims=packed["val"].dims,
        snippets=10,
        extractor="simulated",
        manifest="none",
        grounding="none",
    )
    folder = tmp_path_factory.mktemp("encoder")
    save_model(folder / "model", build_encoder(spec).state_dict(), spec)
    return package(folder / "model", folder / "mlflow")
