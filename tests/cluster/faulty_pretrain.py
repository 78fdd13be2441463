"""`launch/pretrain.py` in which one rank is killed at a scripted point.

FAULT=RANK:POINT:COUNT in the environment: rank RANK gets SIGKILL when it comes to POINT for the
COUNT-th time since it started. Points are `update` (gradients are there, the weights still old)
and places within a save, in their order.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from avvp_dist import commit
from avvp_dist.config import PretrainConfig
from avvp_dist.config.command_line import parse
from avvp_dist.entry import run
from avvp_dist.tasks.pretraining import pretrain
from avvp_dist.training import saving, trainer

SAVING = ("torch.save", "buffers", "digests", "manifest", "rename", "prune")
"""DeepSpeed's files, ours, their digests (in the thread), the manifest, its rename, the removal."""


def dies(point: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, before which the scripted rank dies at its count."""
    rank, where, count = os.environ["FAULT"].split(":")
    left = [int(count) if (os.environ["RANK"], point) == (rank, where) else 0]

    def instead(*arguments: Any, **keys: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **keys)

    return instead


def main() -> None:
    trainer.update = dies("update", trainer.update)
    torch.save = dies("torch.save", torch.save)
    saving.write_tensors = dies("buffers", saving.write_tensors)
    saving.described = dies("digests", saving.described)
    saving.commit_folder = dies("manifest", saving.commit_folder)
    saving.prune = dies("prune", saving.prune)
    rename = dies("rename", Path.replace)

    def replace(path: Path, target: Path) -> Path:
        return rename(path, target) if path.name.startswith(".step-") else path.rename(target)

    commit.Path.replace = replace  # type: ignore[method-assign]
    pretrain(parse(PretrainConfig, __doc__ or ""))


if __name__ == "__main__":
    run(main)
