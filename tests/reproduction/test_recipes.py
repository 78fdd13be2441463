"""What tables and study have in common: how they name the features their numbers belong to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from avvp_dist.reproduction.recipes import described_features
from avvp_dist.shards.schema import HAN_EXTRACTOR
from avvp_dist.shards.shard_set import ShardSet


@pytest.mark.parametrize(
    ("extractor", "words"),
    [
        ("simulated", "Simulated features: no statement about LLP"),
        (HAN_EXTRACTOR, "HAN's features"),
        ("clip-vit", "Features of clip-vit: not comparable with the paper's"),
        ("", "Features of an unnamed extractor: not comparable with the paper's"),
    ],
)
def test_the_features_are_named(
    extractor: str, words: str, packed: dict[str, ShardSet], tmp_path: Path
) -> None:
    folder = shutil.copytree(packed["test"].folder, tmp_path / "test")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "extractor": extractor}))
    assert described_features(ShardSet(folder)) == words
