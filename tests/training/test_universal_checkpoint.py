"""The universal form of a checkpoint: values and moments by parameter, and back into an engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from avvp_dist.config import TrainerConfig
from avvp_dist.errors import CheckpointError
from avvp_dist.training.universal_checkpoint import MOMENTS, convert_to_universal, restore


def trained(width: int = 3) -> SimpleNamespace:
    """An engine without ZeRO after one step, as far as conversion sees it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))
    adam = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(torch.randn(8, 4)).square().sum().backward()
    adam.step()
    return SimpleNamespace(module=module, optimizer=adam, device=torch.device("cpu"))


def saved(engine: SimpleNamespace, folder: Path) -> list[str]:
    """Write DeepSpeed's one file of a training without ZeRO; names of the parameters."""
    folder.mkdir()
    state = {"module": engine.module.state_dict(), "optimizer": engine.optimizer.state_dict()}
    torch.save(state, folder / "mp_rank_00_model_states.pt")
    return [name for name, _ in engine.module.named_parameters()]


def buffers(engine: SimpleNamespace) -> dict[str, Tensor]:
    return dict(engine.module.named_buffers())


def test_weights_moments_and_step_come_back(tmp_path: Path) -> None:
    before = trained()
    names = saved(before, tmp_path / "saved")
    convert_to_universal(tmp_path / "saved", tmp_path / "out", 0, names)
    after = trained()
    for parameter in after.module.parameters():
        nn.init.zeros_(parameter)
    after.optimizer.state.clear()
    restore(after, tmp_path / "out", buffers(before), 5, TrainerConfig(zero_stage=0))
    pairs = zip(before.module.parameters(), after.module.parameters(), strict=True)
    for ours, theirs in pairs:
        assert torch.equal(ours, theirs)
        states = before.optimizer.state[ours], after.optimizer.state[theirs]
        assert all(torch.equal(states[0][key], states[1][key]) for key in MOMENTS)
        assert float(states[1]["step"]) == 5
    assert torch.equal(before.module[1].running_mean, after.module[1].running_mean)


def test_another_model_is_named(tmp_path: Path) -> None:
    before = trained()
    names = saved(before, tmp_path / "saved")
    convert_to_universal(tmp_path / "saved", tmp_path / "out", 0, names)
    wider = trained(width=7)
    with pytest.raises(CheckpointError, match=r"0\.weight has 12 numbers"):
        restore(wider, tmp_path / "out", buffers(wider), 5, TrainerConfig(zero_stage=0))
    convert_to_universal(tmp_path / "saved", tmp_path / "less", 0, names[1:])
    with pytest.raises(CheckpointError, match=r"0\.weight is not among the saved parameters"):
        restore(before, tmp_path / "less", buffers(before), 5, TrainerConfig(zero_stage=0))
