"""A small folder of features, packed as a test asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from avvp_dist.config import PackConfig, TrackingConfig
from avvp_dist.packing.job import pack
from avvp_dist.shards.shard_set import ShardSet

OFF = TrackingConfig(enabled=False)


def write_source(folder: Path, clips: int = 20, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {
        "filenames": np.array([f"-a.{n}_0_10" for n in range(clips)]),
        "audio": rng.random((clips, 10, 4), np.float32),
        "visual": rng.random((clips, 10, 6), np.float32),
        **changes,
    }
    np.savez(folder / "features_train.npz", **arrays)
    return folder


def run(source: Path, out: Path, **keys: Any) -> ShardSet:
    given = {"clips_per_shard": 6, "workers": 1, "extractor": "x", **keys}
    return pack(PackConfig(source=str(source), out=str(out), tracking=OFF, **given))


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.suffix in (".tar", ".npy") or path.name == "manifest.json"
    }
