"""Reports of a training: curves of what was recorded, a line for slow hashing."""

from __future__ import annotations

from pathlib import Path

import pytest

from avvp_dist.config import CalibrateConfig, TrackingConfig
from avvp_dist.loading.mixture import Mixture
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tracking.run import Run
from avvp_dist.training import reporting
from avvp_dist.training.reporting import announce_hashing, draw_curves


def test_curves_are_of_what_was_recorded(tmp_path: Path) -> None:
    config = CalibrateConfig(tracking=TrackingConfig(enabled=False))
    with Run("pretrain", tmp_path, config, {}) as run:
        for step in range(3):
            run.log(step, **{"train/loss": 1.0 / (step + 1)})
        panels = [("loss", ["train/loss", "val/loss"], "loss"), ("AUC", ["val/auc"], "AUC")]
        figure = draw_curves(tmp_path, run, panels)
    assert figure.read_bytes()[:4] == b"\x89PNG"


def test_only_large_sets_that_are_hashed_have_a_line(
    packed: dict[str, ShardSet],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = Mixture([packed["train"]])
    announce_hashing(data, "sha256")
    monkeypatch.setattr(reporting, "_GIB_WORTH_A_LINE", 0.0)
    announce_hashing(data, "size")
    assert capsys.readouterr().out == ""
    announce_hashing(data, "sha256")
    assert "data.verify=size skips the hash" in capsys.readouterr().out
