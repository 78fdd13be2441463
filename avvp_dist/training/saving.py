"""Saving checkpoints: a snapshot in host memory, written by a thread, committed by all ranks."""

from __future__ import annotations

import copy
import errno
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from avvp_dist.commit import Described, HashingFile, commit_folder, described, files_in, write_json
from avvp_dist.config import TrainerConfig
from avvp_dist.entry import lost_a_peer
from avvp_dist.errors import AvvpError, StorageError, first_line
from avvp_dist.models.export import save_model, write_tensors
from avvp_dist.models.specification import Spec
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.training.checkpoint import (
    BUFFERS,
    CHECKPOINTS,
    STATE,
    TRAINER,
    TrainerState,
    prune,
)
from avvp_dist.training.engine import Engine
from avvp_dist.training.precision import stored_precision

_SECONDS_TO_STOP = 5.0
"""Time for a thread whose checkpoint is given up; one that hangs in a disk ends with the job."""


@dataclass(frozen=True)
class SaveTimes:
    """Seconds that a committed checkpoint took."""

    step: int
    blocked: float
    """Seconds for which the train loop waited."""
    total: float
    """Seconds from the beginning of the snapshot to the commit."""


@dataclass(frozen=True)
class _Written:
    """Files of one rank as they are on disk, or the reason why they are not."""

    files: dict[str, Described] = field(default_factory=dict)
    fault: str = ""


@dataclass
class _Save:
    """A checkpoint that is being written."""

    step: int
    temporary: Path
    final: Path
    meta: dict[str, object]
    started: float
    """Seconds on the monotonic clock."""
    blocked: float
    """Seconds for which the train loop has waited so far."""
    written: Future[_Written]


class CheckpointSaver:
    """Saves one checkpoint after another to `OUT/checkpoints/step-NNNNNNNN`, each whole or not.

    Training goes on while a thread of each rank writes and hashes that rank's files. Once all ranks
    have written, `commit` makes the checkpoint count. The newest `trainer.keep` are kept, and the
    one with the best score.

    As a context, it commits at the end what is being written, and where all ranks raise an error
    together. Any other error gives it up. No thread is left.

    Args:
        beat: called with what this rank does next, for the watchdog.
        committed: called on every rank after each commit.
    """

    def __init__(
        self,
        out: Path,
        trainer: TrainerConfig,
        ranks: Ranks,
        beat: Callable[[str], None] = lambda doing: None,
        committed: Callable[[SaveTimes], None] = lambda times: None,
    ) -> None:
        self.out, self.trainer, self.ranks = out, trainer, ranks
        self.beat, self.committed = beat, committed
        self._save: _Save | None = None
        self._exported: Future[_Written] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._given_up = threading.Event()

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            together = isinstance(error, AvvpError) and (error.shared or self.ranks.size == 1)
            if error is None or together:
                self.commit()
        finally:
            self._thread.shutdown(wait=self._give_up())

    @property
    def pending(self) -> bool:
        """Whether a checkpoint is not committed yet; equal on all ranks."""
        return self._save is not None

    @property
    def writing(self) -> bool:
        """Whether this rank still writes its files."""
        return self._save is not None and not self._save.written.done()

    def export(self, folder: Path, state: Mapping[str, Tensor], spec: Spec) -> None:
        """Write an exported model, by this rank's thread and before all later checkpoints.

        It is on disk when a later checkpoint is committed. Otherwise `commit` raises the error.
        """
        if self._exported:
            self._exported.result()  # no more than one copy waits
        copied = _on_host(state)
        self._exported = self._thread.submit(self._export, folder, copied, spec)

    def start(self, engine: Engine, state: TrainerState, score: float | None = None) -> None:
        """Begin to save the state of all ranks, after the checkpoint before; a collective.

        It returns when the state is copied to host memory.

        Raises:
            StorageError: if a file cannot be written; older checkpoints are untouched.
        """
        self.commit()
        self.beat("copying its state")
        started, name = time.monotonic(), f"step-{state.step:08d}"
        folder = self.out / CHECKPOINTS
        temporary = folder / f".{name}.tmp"
        try:
            if self.ranks.is_main:
                for torn in folder.glob(".step-*"):
                    shutil.rmtree(torn)
                temporary.mkdir(parents=True)
            self.ranks.barrier()
            states, buffers = _snapshot(engine, temporary)
        except (OSError, RuntimeError) as error:
            # The rank that meets the error ends alone, and the launcher ends the others.
            reason = _reason(error, self.out)  # before the removal below makes room
            shutil.rmtree(temporary, ignore_errors=True)
            if lost_a_peer(error):
                raise
            raise _unwritten(folder / name, reason) from error
        meta = {
            "step": state.step,
            "world_size": self.ranks.size,
            "zero_stage": self.trainer.zero_stage,
            "precision": stored_precision(self.trainer),
            "score": score,
        }
        written = self._thread.submit(self._write, temporary, states, buffers, state)
        blocked = time.monotonic() - started
        self._save = _Save(state.step, temporary, folder / name, meta, started, blocked, written)

    def commit(self) -> None:
        """Wait until all ranks have written, and make the checkpoint count; a collective.

        Does nothing if no checkpoint is pending.

        Raises:
            StorageError: on all ranks, if a file of any rank could not be written.
        """
        save = self._save
        if save is None:
            return
        waited = time.monotonic()
        self.beat("writing a checkpoint")
        own = save.written.result()
        self.beat("committing a checkpoint")
        by_rank = self.ranks.all_gather_object(own)
        faults = (f"rank {rank}: {one.fault}" for rank, one in enumerate(by_rank) if one.fault)
        fault = by_rank[0].fault or next(faults, "")
        if self.ranks.is_main:
            files = {name: entry for one in by_rank for name, entry in one.files.items()}
            fault = fault or self._commit(save, files)
            if fault:
                shutil.rmtree(save.temporary, ignore_errors=True)
        self._save = None
        if fault := self.ranks.broadcast_object(fault):
            raise _unwritten(save.final, fault, shared=True)
        now = time.monotonic()
        self.committed(SaveTimes(save.step, save.blocked + now - waited, now - save.started))

    def _commit(self, save: _Save, files: dict[str, Described]) -> str:
        """Commit on rank 0; the reason if the disk does not take it."""
        try:
            # DeepSpeed itself copies a script, and offloaded states that lie on a disk already.
            copied = [
                file
                for file in files_in(save.temporary)
                if file.relative_to(save.temporary).as_posix() not in files
            ]
            files |= described(save.temporary, copied)
            commit_folder(save.temporary, save.final, save.meta, files)
            prune(save.final.parent, self.trainer.keep)
        except (OSError, AvvpError) as error:
            return _reason(error, self.out)
        return ""

    def _write(
        self,
        folder: Path,
        states: dict[Path, object],
        buffers: dict[str, Tensor],
        state: TrainerState,
    ) -> _Written:
        """Write this rank's files, in its thread."""
        if self._exported and (exported := self._exported.result()).fault:
            return exported
        files: dict[str, Described] = {}
        try:
            while states:  # memory is free again as soon as its file is written
                path, content = states.popitem()
                with HashingFile(path, self._given_up) as file:
                    torch.save(content, file)
                    files[path.relative_to(folder).as_posix()] = file.finish()
                del content
            if self.ranks.is_main:
                write_tensors(folder / BUFFERS, buffers)
                write_json(folder / TRAINER, asdict(state))
                files |= described(folder, [folder / BUFFERS, folder / TRAINER])
        except (OSError, RuntimeError, AvvpError) as error:
            return _Written(fault=_reason(error, self.out))
        return _Written(files)

    def _export(self, folder: Path, state: Mapping[str, Tensor], spec: Spec) -> _Written:
        """Write an exported model, in the thread."""
        try:
            save_model(folder, state, spec)
        except (OSError, AvvpError) as error:
            return _Written(fault=_reason(error, self.out))
        return _Written()

    def _give_up(self) -> bool:
        """Remove a torn checkpoint; returns whether the thread has stopped writing.

        Only rank 0 removes files that all ranks share.
        """
        save, self._save = self._save, None
        self._given_up.set()
        tasks = [task for task in (self._exported, save and save.written) if task]
        _, running = wait(tasks, _SECONDS_TO_STOP)
        if save and self.ranks.is_main:
            shutil.rmtree(save.temporary, ignore_errors=True)
        return not running


def host_copy(value: object) -> object:
    """A copy of a state, with its tensors in host memory.

    A copy from a device is in pinned memory, and done once the device is synchronised.
    """
    if isinstance(value, Tensor):
        return _host_tensor(value)
    if isinstance(value, dict):
        copied = copy.copy(value)  # with the attribute that torch adds to a state dict
        copied.update((key, host_copy(one)) for key, one in value.items())
        return copied
    if type(value) is list or type(value) is tuple:  # others, such as a shape, hold no tensors
        return type(value)(map(host_copy, value))
    return copy.deepcopy(value)


def _snapshot(engine: Engine, folder: Path) -> tuple[dict[Path, object], dict[str, Tensor]]:
    """DeepSpeed's files of this rank below `folder` with their content, and the buffers."""
    states: dict[Path, object] = {}

    def keep(state_dict: object, path: str) -> None:
        states[Path(path)] = host_copy(state_dict)

    # DeepSpeed makes the folders, and hands each file to this.
    storage = engine.checkpoint_engine
    storage.save = keep
    try:
        engine.save_checkpoint(str(folder), tag=STATE, save_latest=False)
    finally:
        del storage.save
    return states, _on_host(dict(engine.module.named_buffers()))


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in host memory; the device has finished all copies before."""
    copied = {name: _host_tensor(tensor.contiguous()) for name, tensor in tensors.items()}
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return copied


def _host_tensor(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    on_host = tensor.device.type == "cpu"
    return tensor.clone() if on_host else tensor.to("cpu", non_blocking=True)


def _unwritten(checkpoint: Path, reason: str, *, shared: bool = False) -> StorageError:
    return StorageError(
        f"checkpoint {checkpoint} cannot be written: {reason}",
        remedy="Make room there; trainer.resume=auto resumes from the checkpoint before",
        shared=shared,
    )


def _reason(error: Exception, folder: Path) -> str:
    """The reason why a file could not be written."""
    full = isinstance(error, StorageError) or getattr(error, "errno", 0) in (
        errno.ENOSPC,
        errno.EDQUOT,
    )
    if full or shutil.disk_usage(folder).free < 1 << 20:
        return "no space left"
    return first_line(error)
