"""Reports of a training: means over clips, curves of what was recorded, a line for slow hashing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avvp_dist.config import CalibrateConfig, TrackingConfig
from avvp_dist.loading.mixture import Mixture
from avvp_dist.runtime.ranks import Ranks, single_rank
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tracking.run import Run
from avvp_dist.training import reporting
from avvp_dist.training.reporting import StepLosses, announce_hashing, draw_curves


def losses(*parts: tuple[float, float]) -> StepLosses:
    made = StepLosses()
    for value, weight in parts:
        made.add({"loss": torch.tensor(value), "own": torch.tensor(2 * value)}, weight)
    return made


def test_means_are_over_the_clips_that_were_read() -> None:
    assert losses((1.0, 0.5), (4.0, 0.25)).means(single_rank()) == pytest.approx(
        {"train/loss": 2.0, "train/own": 4.0}
    )
    # A step without any clip has no mean, and divides nothing by zero.
    assert losses((3.0, 0.0)).means(single_rank()) == {"train/loss": 0.0, "train/own": 0.0}


def test_means_weigh_ranks_by_their_clips() -> None:
    class Two(Ranks):
        def all_reduce_mean(self, value: torch.Tensor) -> torch.Tensor:
            other = torch.stack([torch.tensor(8.0), torch.tensor(0.0), torch.tensor(1.5)])
            return (value + other) / 2

    made = losses((4.0, 0.5)).means(Two(0, 2, torch.device("cpu")))
    assert made["train/loss"] == pytest.approx((4.0 * 0.5 + 8.0) / (0.5 + 1.5))


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
