"""Exports of random models as MLflow models, and media files for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avvp_dist.config import EncoderConfig, ObjectiveConfig, ParserConfig
from avvp_dist.features.backbones.registry import BACKBONES, extractor_of
from avvp_dist.models.export import build_encoder, build_parser, save_model
from avvp_dist.models.specification import EncoderSpec, ParserSpec
from avvp_dist.shards.schema import LLP_CLASSES
from avvp_dist.tracking.packaging import package
from tests.extraction.small_backbones import LIGHT, LOUDNESS
from tests.features.made import make

DEFAULT, SMALL = ["yamnet", "efficientnet-lite0"], [LIGHT, LOUDNESS]
DIMS = {"audio": 3, "visual": 4}
"""Feature sizes of the small backbones."""


@pytest.fixture(scope="session")
def parser_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parser of the default backbones' features as an MLflow model."""
    return parser(tmp_path_factory.mktemp("parser"), {"audio": 1024, "visual": 1280}, DEFAULT)


@pytest.fixture(scope="session")
def small_parser_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parser of the small backbones' features as an MLflow model."""
    return parser(tmp_path_factory.mktemp("parser"), DIMS, SMALL)


def parser(folder: Path, dims: dict[str, int], backbones: list[str]) -> Path:
    spec = ParserSpec(
        parser=ParserConfig(width=16),
        dims=dims,
        snippets=10,
        classes=list(LLP_CLASSES),
        extractor=extractor_of(backbones),
        manifest="none",
    )
    torch.manual_seed(0)
    save_model(folder / "model", build_parser(spec).state_dict(), spec)
    return package(folder / "model", folder / "mlflow")


@pytest.fixture(scope="session")
def encoder_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of the small backbones' features as an MLflow model."""
    spec = EncoderSpec(
        encoder=EncoderConfig(size="tiny"),
        objective=ObjectiveConfig(),
        dims=DIMS,
        snippets=10,
        extractor=extractor_of(SMALL),
        manifest="none",
        grounding="none",
    )
    folder = tmp_path_factory.mktemp("encoder")
    save_model(folder / "model", build_encoder(spec).state_dict(), spec)
    return package(folder / "model", folder / "mlflow")


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of 12 s, a mute one of 4 s, and one without pictures."""
    folder = tmp_path_factory.mktemp("videos").resolve()
    make(folder / "long.mkv", length=12, seconds=(1, 8, 11))
    make(folder / "mute.mp4", length=4, sound=False)
    make(folder / "sound.wav", pictures=False)
    return folder


@pytest.fixture
def small_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small backbones by the names that stand in the extractor."""
    monkeypatch.setitem(BACKBONES, "light", LIGHT)
    monkeypatch.setitem(BACKBONES, "loudness", LOUDNESS)
