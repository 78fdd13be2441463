"""Batches of a request, and exports that were changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from avvp_dist.errors import CheckpointError
from avvp_dist.serving.batches import batches, verified
from avvp_dist.serving.requests import ClipRequest
from avvp_dist.tracking.packaging import export_in


def test_any_number_of_clips_comes_in_batches_in_order() -> None:
    clips = [
        ClipRequest(None, {"audio": np.full((1 + n % 2, 3), n, np.float32)}) for n in range(100)
    ]
    parts = list(batches(clips))
    assert [streams["audio"].shape for streams, _ in parts] == [(64, 2, 3), (36, 2, 3)]
    assert [int(row[0, 0]) for streams, _ in parts for row in streams["audio"]] == list(range(100))
    assert [n for _, lengths in parts for n in lengths.tolist()] == [1, 2] * 50
    streams, _ = parts[0]
    assert streams["audio"][2, 1].abs().max() == 0


def test_a_changed_export_is_not_loaded(parser_model: Path, tmp_path: Path) -> None:
    export = Path(shutil.copytree(export_in(parser_model), tmp_path / "export"))
    assert verified(export) == export
    with (export / "config.yaml").open("a") as file:
        file.write("\n")
    with pytest.raises(CheckpointError, match=r"config\.yaml has \d+ bytes, not \d+.*again"):
        verified(export)
