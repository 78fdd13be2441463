"""Which checkpoints count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from avvp_dist.errors import CheckpointError
from avvp_dist.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from avvp_dist.training.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


class Engine:
    """Writes and reads one file where DeepSpeed writes many."""

    def save_checkpoint(self, folder: str, tag: str, client_state: Any, save_latest: bool) -> None:
        path = Path(folder) / tag
        path.mkdir()
        torch.save(client_state, path / "states.pt")

    def load_checkpoint(self, folder: str, tag: str) -> tuple[str, Any]:
        return folder, torch.load(Path(folder) / tag / "states.pt", weights_only=True)


def save(folder: Path, *steps: int, keep: int = 2) -> None:
    for step in steps:
        save_checkpoint(Engine(), folder, step, {"step": step}, keep, ALONE)


def test_the_newest_is_loaded_and_only_some_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 2, 4, 10)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004", "step-00000010"]
    assert load_checkpoint(Engine(), tmp_path, ALONE) == {"step": 10}


def test_none_is_not_an_error(tmp_path: Path) -> None:
    assert load_checkpoint(Engine(), tmp_path, ALONE) is None


def test_a_save_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    (tmp_path / "step-00000004" / "manifest.json").unlink()
    assert load_checkpoint(Engine(), tmp_path, ALONE) == {"step": 2}


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_one_is_named(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 2)
    file = tmp_path / "step-00000002" / "state" / "states.pt"
    data = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        data[100] ^= 1
        file.write_bytes(data[:-1] if damage == "truncate" else data)
    with pytest.raises(CheckpointError, match=r"states\.pt"):
        load_checkpoint(Engine(), tmp_path, ALONE)
