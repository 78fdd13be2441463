"""Fixtures of every test: the checkout, the shared reference data, a small packed corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from avvp_dist.config import PackConfig, SimulateConfig
from avvp_dist.data.shards import ShardSet
from avvp_dist.data.simulate import simulate
from avvp_dist.data.sources import pack

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data beside the checkout; a test that asks for it is marked `shared`."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference data is not here")
    return folder


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated features with annotations: 96 train, 24 val and 24 test clips."""
    out = tmp_path_factory.mktemp("features")
    return simulate(
        SimulateConfig(out=str(out), train=96, val=24, test=24, audio_dim=12, visual_dim=16)
    )


@pytest.fixture(scope="session")
def packed(features: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardSet]:
    """The splits of `features` as shard sets; train has three shards of 40, 40 and 16 clips."""
    out = tmp_path_factory.mktemp("shards")
    return {
        split: pack(
            PackConfig(
                source=str(features),
                split=split,
                out=str(out / split),
                clips_per_shard=40,
                extractor="simulated",
            )
        )
        for split in ("train", "val", "test")
    }
