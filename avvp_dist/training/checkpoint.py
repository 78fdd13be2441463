"""Checkpoints to go on from: DeepSpeed's files, committed whole, newest last."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from avvp_dist.commit import MANIFEST, commit_folder, described, files_in, verify_folder, write_json
from avvp_dist.config import TrainerConfig
from avvp_dist.entry import lost_a_peer
from avvp_dist.errors import AvvpError, CheckpointError, StorageError, first_line
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.training.universal_checkpoint import convert_to_universal, restore

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in a run's folder."""
_TAG, _TRAINER, _BUFFERS = "state", "trainer.json", "buffers.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint, by its manifest. `score` is None where it was not validated."""

    folder: Path
    step: int
    world_size: int
    zero_stage: int
    precision: str
    score: float | None

    def fits(self, trainer: TrainerConfig, ranks: Ranks) -> bool:
        """Whether DeepSpeed's files load as they are: those without ZeRO on any number of ranks."""
        same = (self.zero_stage, self.precision) == (trainer.zero_stage, trainer.precision)
        return same and (self.zero_stage == 0 or self.world_size == ranks.size)

    @property
    def state(self) -> dict[str, Any]:
        """The plain values that it was saved with."""
        state: dict[str, Any] = json.loads((self.folder / _TRAINER).read_text())
        return state


def check_unclaimed(out: Path, resume: str) -> None:
    """Raise `CheckpointError` if `out` holds the checkpoints of a run that is not to be resumed."""
    if resume == "never" and any((out / CHECKPOINTS).glob("*step-*")):
        raise CheckpointError(
            f"{out} already holds a run",
            remedy="Go on with trainer.resume=auto, or choose another trainer.out",
        )


def save_checkpoint(
    engine: Any,
    out: Path,
    step: int,
    state: dict[str, Any],
    trainer: TrainerConfig,
    ranks: Ranks,
    score: float | None = None,
) -> None:
    """Save all ranks' state as `OUT/checkpoints/step-NNNNNNNN`; it appears whole or not at all.

    The newest `trainer.keep` stay, and the one with the best `score`.

    Args:
        state: plain values that come back from `load_checkpoint`.

    Raises:
        StorageError: if a file cannot be written; older checkpoints are untouched.
    """
    folder = out / CHECKPOINTS
    temporary = folder / f".step-{step:08d}.tmp"
    if ranks.is_main:
        for torn in folder.glob(".step-*"):
            shutil.rmtree(torn)
        temporary.mkdir(parents=True)
    ranks.barrier()
    try:
        engine.save_checkpoint(str(temporary), tag=_TAG, save_latest=False)
        if ranks.is_main:
            buffers = {name: t.contiguous() for name, t in engine.module.named_buffers()}
            save_file(buffers, temporary / _BUFFERS)
            write_json(temporary / _TRAINER, state)
        ranks.barrier()
        mine = files_in(temporary)[ranks.rank :: ranks.size]
        files = {
            k: v
            for part in ranks.all_gather_object(described(temporary, mine))
            for k, v in part.items()
        }
        if ranks.is_main:
            meta = {
                "step": step,
                "world_size": ranks.size,
                "zero_stage": trainer.zero_stage,
                "precision": trainer.precision,
                "score": score,
            }
            commit_folder(temporary, folder / f"step-{step:08d}", meta, files)
            _prune(folder, trainer.keep)
    except (OSError, RuntimeError, AvvpError) as error:
        # Whoever meets it ends alone, and the launcher ends the others.
        reason = _reason(error, folder)  # asked before anything makes room
        shutil.rmtree(temporary, ignore_errors=True)
        if lost_a_peer(error):
            raise
        raise StorageError(
            f"checkpoint {folder / f'step-{step:08d}'} cannot be written: {reason}",
            remedy="Make room there; trainer.resume=auto goes on from the one before",
        ) from error
    ranks.barrier()


def newest(out: Path, ranks: Ranks, *, set_aside: bool = True) -> Checkpoint | None:
    """The newest whole checkpoint; newer ones that are damaged are set aside, with a line each.

    Args:
        set_aside: False: they are named and stay where they are.

    Raises:
        CheckpointError: if there are some, and none is whole.
    """
    folder = out / CHECKPOINTS
    torn = ranks.broadcast_object(sorted(p.name for p in folder.glob("damaged-step-*")))
    for found in reversed(ranks.broadcast_object(checkpoints(folder))):
        shared = ranks.all_gather_object(verify_folder(found, ranks.rank, ranks.size))
        wrong = [fault for part in shared for fault in part]
        if not wrong:
            return _read(found)
        if ranks.is_main:
            said = f"checkpoint {found} is damaged: {wrong[0]}"
            if set_aside:
                aside = found.with_name(f"damaged-{found.name}")
                shutil.rmtree(aside, ignore_errors=True)
                found.rename(aside)
                said += f"; it is now {aside}"
            print(said, file=sys.stderr)
        torn.append(found.name)
        ranks.barrier()
    if torn:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole, {', '.join(torn)} are damaged",
            remedy="Bring one back, or train into another trainer.out",
            shared=True,
        )
    return None


def load_checkpoint(
    engine: Any,
    checkpoint: Checkpoint,
    trainer: TrainerConfig,
    ranks: Ranks,
    check: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Load a checkpoint into `engine`, whatever ranks, ZeRO stage and precision saved it.

    Args:
        check: called with the saved `state` before anything is loaded.

    Returns:
        The `state` it was saved with.

    Raises:
        CheckpointError: if it does not load.
    """
    state = checkpoint.state
    check(state)
    saved = checkpoint.folder / _TAG
    universal = checkpoint.folder.parent / f".step-{checkpoint.step:08d}.universal"
    try:
        if checkpoint.fits(trainer, ranks):
            path, _ = engine.load_checkpoint(str(checkpoint.folder), tag=_TAG)
            if path is None:
                raise CheckpointError(f"checkpoint {checkpoint.folder} holds no state")
        else:
            if ranks.is_main:
                print(
                    f"{checkpoint.folder}: {checkpoint.world_size} ranks, ZeRO "
                    f"{checkpoint.zero_stage}, {checkpoint.precision} turn into {ranks.size} "
                    f"ranks, ZeRO {trainer.zero_stage}, {trainer.precision}"
                )
                convert_to_universal(saved, universal, checkpoint.zero_stage, state["parameters"])
            ranks.barrier()
            buffers = load_file(checkpoint.folder / _BUFFERS)
            restore(engine, universal, buffers, state["step"] - state["skipped"], trainer)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.folder} does not load: {first_line(error)}",
            remedy="Resume with the model that saved it",
        ) from error
    ranks.barrier()
    if ranks.is_main:
        shutil.rmtree(universal, ignore_errors=True)
    return state


def checkpoints(folder: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{MANIFEST}"))


def _read(folder: Path) -> Checkpoint:
    meta = json.loads((folder / MANIFEST).read_text())
    try:
        fields = ("step", "world_size", "zero_stage", "precision", "score")
        return Checkpoint(folder, **{name: meta[name] for name in fields})
    except KeyError as error:
        raise CheckpointError(
            f"checkpoint {folder} is of another version: its manifest lacks {error}",
            remedy="Resume with the version that saved it, or train into another trainer.out",
        ) from None


def _prune(folder: Path, keep: int) -> None:
    found = [_read(path) for path in checkpoints(folder)]
    scored = [one for one in found if one.score is not None]
    best = max(scored, key=lambda one: (one.score, one.step), default=None)
    for old in found[:-keep]:
        if old is not best:
            # Without its manifest it is none any more, should this be cut off.
            (old.folder / MANIFEST).unlink()
            shutil.rmtree(old.folder)


def _reason(error: Exception, folder: Path) -> str:
    """Why a file could not be written."""
    full = isinstance(error, StorageError) or getattr(error, "errno", 0) == errno.ENOSPC
    if full or shutil.disk_usage(folder).free < 1 << 20:
        return "no space left"
    if "inline_container" in str(error):  # torch's writer, which says no more than that
        return "the disk did not take all of it"
    return first_line(error)
