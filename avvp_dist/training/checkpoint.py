"""Checkpoints to resume from: which are whole, which stay, and how one is loaded."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from safetensors.torch import load_file

from avvp_dist.commit import MANIFEST, verify_folder
from avvp_dist.config import TrainerConfig
from avvp_dist.errors import CheckpointError, first_line
from avvp_dist.loading.stream import ClipStream
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.tracking.records import read_series
from avvp_dist.training.engine import Engine
from avvp_dist.training.precision import stored_precision
from avvp_dist.training.task import Task
from avvp_dist.training.universal_checkpoint import convert_to_universal, restore

CHECKPOINTS = "checkpoints"
"""Name of the folder of checkpoints in a run's folder."""
STATE, TRAINER, BUFFERS = "state", "trainer.json", "buffers.safetensors"
"""Names in a checkpoint: the folder of DeepSpeed's files, and our two files beside it."""
_LATER = {"stale"}
"""Fields of `TrainerState` that older checkpoints lack and that have a default for them."""


@dataclass(frozen=True)
class TrainerState:
    """Plain values that a resumed training needs beside DeepSpeed's files."""

    step: int
    order: dict[str, object] = field(default_factory=dict)
    """Everything the order of clips depends on, by config key."""
    best: float = float("-inf")
    """Score of the best exported epoch."""
    stale: int = 0
    """Validations since the score was last improved."""
    skipped: int = 0
    """Steps without an update."""
    parameters: list[str] = field(default_factory=list)
    """Names of the trained parameters, in the order of the optimiser's groups."""
    run: str = ""
    """Key of the run in its records."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint, as its manifest describes it."""

    folder: Path
    step: int
    world_size: int
    zero_stage: int
    precision: str
    """Precision of the weights in DeepSpeed's files: `bf16` beside float32 ones, or `fp32`."""
    score: float | None
    """Validation score of its weights; None where they were not validated."""

    def fits(self, trainer: TrainerConfig, ranks: Ranks) -> bool:
        """Whether DeepSpeed's files load without conversion.

        Files saved without ZeRO load on any number of ranks.
        """
        same = (self.zero_stage, self.precision) == (trainer.zero_stage, stored_precision(trainer))
        return same and (self.zero_stage == 0 or self.world_size == ranks.size)

    @property
    def state(self) -> TrainerState:
        """The trainer's state.

        Raises:
            CheckpointError: if another version saved it.
        """
        values = json.loads((self.folder / TRAINER).read_text())
        names = {item.name for item in fields(TrainerState)}
        if differing := (values.keys() ^ names) - (_LATER - values.keys()):
            raise _other_version(self.folder, TRAINER, differing)
        return TrainerState(**values)


def check_unclaimed(out: Path, resume: str) -> None:
    """Raise `CheckpointError` if `out` holds the checkpoints of a run that is not to be resumed."""
    if resume == "never" and any((out / CHECKPOINTS).glob("*step-*")):
        raise CheckpointError(
            f"{out} already holds a run",
            remedy="Go on with trainer.resume=auto, or choose another trainer.out",
        )


def latest_checkpoint(out: Path, ranks: Ranks, *, set_aside: bool = True) -> Checkpoint | None:
    """The checkpoint from which a run in `out` resumes; None if it never saved one.

    Args:
        set_aside: False: damaged checkpoints are named and stay where they are.

    Raises:
        CheckpointError: if it saved some, and none is whole.
    """
    checkpoint = newest(out, ranks, set_aside=set_aside)
    if checkpoint is None and ranks.broadcast_object(
        "train/checkpoint_seconds" in read_series(out)
    ):
        raise CheckpointError(
            f"{out} has records of checkpoints, but there is none any more",
            remedy="Bring them back, or train into another trainer.out",
            shared=True,
        )
    return checkpoint


def newest(out: Path, ranks: Ranks, *, set_aside: bool = True) -> Checkpoint | None:
    """The newest whole checkpoint; damaged ones that are newer are named and set aside.

    Args:
        set_aside: False: damaged checkpoints stay where they are.

    Raises:
        CheckpointError: if there are checkpoints, and none of them is whole.
    """
    folder = out / CHECKPOINTS
    torn = ranks.broadcast_object(sorted(p.name for p in folder.glob("damaged-step-*")))
    for checkpoint in reversed(ranks.broadcast_object(checkpoints(folder))):
        by_rank = ranks.all_gather_object(verify_folder(checkpoint, ranks.rank, ranks.size))
        faults = [fault for faults in by_rank for fault in faults]
        if not faults:
            return _read(checkpoint)
        if ranks.is_main:
            message = f"checkpoint {checkpoint} is damaged: {faults[0]}"
            if set_aside:
                aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
                shutil.rmtree(aside, ignore_errors=True)
                checkpoint.rename(aside)
                message += f"; it is now {aside}"
            print(message, file=sys.stderr)
        torn.append(checkpoint.name)
        ranks.barrier()
    if torn:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole, {', '.join(torn)} are damaged",
            remedy="Bring one back, or train into another trainer.out",
            shared=True,
        )
    return None


def check_same(
    state: TrainerState, stream: ClipStream, task: Task, parameters: Sequence[str]
) -> None:
    """Raise `CheckpointError` if a checkpoint belongs to other data, another order or model."""
    stream.check_same(state.order, task.lineage)
    if set(state.parameters) != set(parameters):
        changed = set(state.parameters) ^ set(parameters)
        raise CheckpointError(
            f"the checkpoint belongs to another model: {', '.join(sorted(changed)[:5])}",
            remedy="Put its config back, or train into another trainer.out",
            shared=True,
        )


def load_checkpoint(
    engine: Engine,
    checkpoint: Checkpoint,
    trainer: TrainerConfig,
    ranks: Ranks,
) -> TrainerState:
    """Load a checkpoint of any number of ranks, ZeRO stage and precision into `engine`.

    Returns:
        The trainer's state with which it was saved.

    Raises:
        CheckpointError: if it does not load.
    """
    state = checkpoint.state
    saved = checkpoint.folder / STATE
    universal = checkpoint.folder.parent / f".step-{checkpoint.step:08d}.universal"
    try:
        if checkpoint.fits(trainer, ranks):
            path, _ = engine.load_checkpoint(str(checkpoint.folder), tag=STATE)
            if path is None:
                raise CheckpointError(f"checkpoint {checkpoint.folder} holds no state")
        else:
            if ranks.is_main:
                print(
                    f"{checkpoint.folder}: {checkpoint.world_size} ranks, ZeRO "
                    f"{checkpoint.zero_stage}, {checkpoint.precision} turn into {ranks.size} "
                    f"ranks, ZeRO {trainer.zero_stage}, {stored_precision(trainer)}"
                )
                convert_to_universal(saved, universal, checkpoint.zero_stage, state.parameters)
            ranks.barrier()
            buffers = load_file(checkpoint.folder / BUFFERS)
            restore(engine, universal, buffers, state.step - state.skipped, trainer)
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
    """Folders of the committed checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{MANIFEST}"))


def prune(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` and the one with the best score."""
    saved = [_read(path) for path in checkpoints(folder)]
    scored = [(one.score, one.step) for one in saved if one.score is not None]
    best = max(scored, default=None)
    for old in saved[:-keep]:
        if (old.score, old.step) != best:
            # First its manifest: a removal that is cut off must not leave a checkpoint.
            (old.folder / MANIFEST).unlink()
            shutil.rmtree(old.folder)


def _read(folder: Path) -> Checkpoint:
    meta = json.loads((folder / MANIFEST).read_text())
    names = [item.name for item in fields(Checkpoint) if item.name != "folder"]
    if missing := set(names) - meta.keys():
        raise _other_version(folder, MANIFEST, missing)
    return Checkpoint(folder, **{name: meta[name] for name in names})


def _other_version(folder: Path, file: str, keys: set[str]) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {folder} was saved by another version: {file} differs in {min(keys)}",
        remedy="Resume with the version that saved it, or train into another trainer.out",
    )
