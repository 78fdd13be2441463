"""Checkpoints to go on from: DeepSpeed's files, committed whole, newest last."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from avvp_dist.commit import MANIFEST, commit_folder, faults
from avvp_dist.errors import CheckpointError, first_line
from avvp_dist.training.ranks import Ranks

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in a run's folder."""
_TAG = "state"


def check_unclaimed(out: Path, resume: str) -> None:
    """Raise `CheckpointError` if `out` holds the checkpoints of a run that is not to be resumed."""
    if resume == "never" and checkpoints(out / CHECKPOINTS):
        raise CheckpointError(
            f"{out} already holds a run",
            remedy="Go on with trainer.resume=auto, or choose another trainer.out",
        )


def save_checkpoint(
    engine: Any, folder: Path, step: int, state: dict[str, Any], keep: int, ranks: Ranks
) -> None:
    """Save all ranks' state as `FOLDER/step-NNNNNNNN`; it appears whole or not at all.

    Args:
        state: plain values that come back from `load_checkpoint`.
        keep: so many newest checkpoints stay.
    """
    temporary = folder / f".step-{step:08d}.tmp"
    if ranks.first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    ranks.barrier()
    engine.save_checkpoint(str(temporary), tag=_TAG, client_state=state, save_latest=False)
    ranks.barrier()
    if ranks.first:
        meta = {"step": step, "world_size": ranks.size}
        commit_folder(temporary, folder / f"step-{step:08d}", meta)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    ranks.barrier()


def load_checkpoint(engine: Any, folder: Path, ranks: Ranks) -> dict[str, Any] | None:
    """Load the newest committed checkpoint; its `state`, or None if there is none at all.

    Raises:
        CheckpointError: if the newest one is damaged or was saved by another number of ranks.
    """
    found = checkpoints(folder)
    if not found:
        return None
    newest = found[-1]
    if wrong := ranks.share(faults(newest) if ranks.first else None):
        raise CheckpointError(
            f"checkpoint {newest} is damaged: {wrong[0]}",
            remedy="Remove it to go on from the one before",
        )
    try:
        path, state = engine.load_checkpoint(str(newest), tag=_TAG)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {newest} does not load: {first_line(error)}",
            remedy="Resume with the model, ZeRO stage and number of ranks that saved it",
        ) from error
    if path is None:
        raise CheckpointError(f"checkpoint {newest} holds no state")
    return dict(state)


def checkpoints(folder: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{MANIFEST}"))
