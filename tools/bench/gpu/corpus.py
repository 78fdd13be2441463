"""Simulated clips as a grounded shard set, which the sections after it read."""

from __future__ import annotations

from collections.abc import Iterator

from avvp_dist.config import (
    CalibrateConfig,
    GroundConfig,
    PackConfig,
    SimulateConfig,
    TrackingConfig,
)
from avvp_dist.grounding.calibrate import calibrate
from avvp_dist.grounding.job import ground
from avvp_dist.packing.job import pack
from avvp_dist.packing.simulation import simulate
from tools.bench.gpu.rows import Corpus, Setting


def run(setting: Setting, deadline: float) -> Iterator[Corpus]:
    """Simulate, pack, calibrate and ground."""
    features, (audio, visual) = setting.folder / "features", setting.dims
    clips, off = setting.corpus, TrackingConfig(enabled=False, figures=False)
    simulate(
        SimulateConfig(
            str(features), train=clips, val=1, test=1, audio_dim=audio, visual_dim=visual
        )
    )
    out = str(setting.shards)
    pack(
        PackConfig(
            str(features), out, split="train", extractor="simulated", workers=1, tracking=off
        )
    )
    calibrate(CalibrateConfig(shards=out, workers=1, tracking=off))
    ground(GroundConfig(shards=out, workers=1, tracking=off))
    tars = setting.shards.glob("*.tar")
    yield Corpus(clips, sum(tar.stat().st_size for tar in tars))
