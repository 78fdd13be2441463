"""Which checkpoints count, which stay, and which are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from avvp_dist.config import TrainerConfig
from avvp_dist.errors import CheckpointError
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.training.checkpoint import (
    TrainerState,
    check_unclaimed,
    checkpoints,
    load_checkpoint,
    newest,
)
from avvp_dist.training.saving import CheckpointSaver

ALONE = Ranks(0, 1, torch.device("cpu"))


class Engine:
    """Saves and loads one file where DeepSpeed has many."""

    def __init__(self, size: int = 1) -> None:
        self.module = nn.BatchNorm1d(2)
        self.weights = torch.zeros(200 * size, dtype=torch.uint8)
        self.checkpoint_engine = SimpleNamespace()

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        path = Path(folder) / tag
        path.mkdir()
        self.checkpoint_engine.save({"weights": self.weights}, str(path / "states.pt"))

    def load_checkpoint(self, folder: str, tag: str) -> tuple[str, Any]:
        assert (Path(folder) / tag / "states.pt").is_file()
        return folder, None


def save(out: Path, *steps: int, keep: int = 2, **scores: float) -> None:
    with CheckpointSaver(out, TrainerConfig(out=str(out), keep=keep), ALONE) as saver:
        for step in steps:
            saver.start(Engine(), TrainerState(step), scores.get(f"step{step}"))


def steps(out: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints(out / "checkpoints")]


def test_the_newest_is_loaded_and_only_some_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 2, 4, 10)
    assert steps(tmp_path) == [4, 10]
    found = newest(tmp_path, ALONE)
    assert found is not None and (found.step, found.world_size) == (10, 1)
    trainer = TrainerConfig(out=str(tmp_path))
    assert found.state == TrainerState(10)
    assert load_checkpoint(Engine(), found, trainer, ALONE) == TrainerState(10)


def test_the_best_stays(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 5, 6, keep=1, step2=0.7, step4=0.9, step5=0.8)
    assert steps(tmp_path) == [4, 6]


def test_none_is_not_an_error(tmp_path: Path) -> None:
    assert newest(tmp_path, ALONE) is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "no manifest entry", "empty"])
def test_from_a_damaged_one_the_one_before_is_gone_back_to(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 2, 4)
    folder = tmp_path / "checkpoints" / "step-00000004"
    file = folder / "state" / "states.pt"
    data = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "no manifest entry":
        (folder / "manifest.json").write_text("{}")
    elif damage == "empty":
        (folder / "manifest.json").write_text("")
    else:
        data[100] ^= 1
        file.write_bytes(data[:-1] if damage == "truncate" else data)
    found = newest(tmp_path, ALONE)
    assert found is not None and found.step == 2
    err = capsys.readouterr().err
    assert f"checkpoint {folder} is damaged: " in err and "damaged-step-00000004" in err
    file = found.folder / "state" / "states.pt"
    file.write_bytes(b"")
    for _ in range(2):  # what was set aside is not forgotten
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
            newest(tmp_path, ALONE)
    with pytest.raises(CheckpointError, match="already holds a run"):
        check_unclaimed(tmp_path, "never")


def test_another_version_is_named(tmp_path: Path) -> None:
    save(tmp_path, 2)
    path = tmp_path / "checkpoints" / "step-00000002" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["zero_stage"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"another version: .* differs in zero_stage"):
        newest(tmp_path, ALONE)


def test_a_state_of_another_version_is_named(tmp_path: Path) -> None:
    save(tmp_path, 2)
    found = newest(tmp_path, ALONE)
    assert found is not None
    (found.folder / "trainer.json").write_text('{"step": 2, "seen": 4}')
    with pytest.raises(CheckpointError, match=r"another version: trainer\.json differs in best"):
        load_checkpoint(Engine(), found, TrainerConfig(out=str(tmp_path)), ALONE)


def test_a_state_from_before_validations_were_counted_is_read(tmp_path: Path) -> None:
    save(tmp_path, 2)
    found = newest(tmp_path, ALONE)
    assert found is not None
    file = found.folder / "trainer.json"
    values = json.loads(file.read_text())
    del values["stale"]
    file.write_text(json.dumps(values))
    assert found.state == TrainerState(2, stale=0)
