"""This process among its peers: rank, device, and what the ranks tell each other."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.abc import MetaPathFinder
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.autograd.function import FunctionCtx

from avvp_dist.errors import ClusterError, first_line
from avvp_dist.runtime.slurm import export_slurm_ranks

T = TypeVar("T")
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Ranks:
    """Number of this rank, number of all ranks, and this rank's device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which speaks and writes for all."""
        return self.rank == 0

    @property
    def init_device(self) -> torch.device:
        """Device on which modules are built, before the engine moves them to `device`."""
        return torch.device("cpu")

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()

    def broadcast_object(self, value: T) -> T:
        """Rank 0's plain value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def all_gather_object(self, value: T) -> list[T]:
        """Plain values of all ranks, on every rank."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def all_reduce_mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over the ranks in float32, on every rank; without gradient."""
        value = value.detach().float().clone()
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def maximum(self, numbers: Sequence[float]) -> torch.Tensor:
        """Maximum of each number over the ranks, float32 `[n]` on the device, without waiting."""
        values = torch.tensor(numbers, dtype=torch.float32)
        if self.device.type != "cpu":
            values = values.pin_memory().to(self.device, non_blocking=True)
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def union(self, numbers: set[int]) -> set[int]:
        """Numbers that any rank has, on every rank."""
        return set().union(*self.all_gather_object(numbers))

    def own_slice(self, items: NDArray[Scalar]) -> NDArray[Scalar]:
        """This rank's items: every `size`-th, beginning with item number `rank`."""
        return items[self.rank :: self.size]

    def interleave(self, part: NDArray[Scalar]) -> NDArray[Scalar]:
        """The results for `own_slice(items)` of all ranks, in the order of `items`, on every rank.

        The inverse of `own_slice`.
        """
        if self.size == 1:
            return part
        parts = self.all_gather_object(part)
        joined = np.empty((sum(map(len, parts)), *part.shape[1:]), part.dtype)
        for rank, rows in enumerate(parts):
            joined[rank :: self.size] = rows
        return joined

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """The rows `[n, ...]` of all ranks, one rank after the other; n is equal on all ranks."""
        if self.size == 1:
            return x
        whole = x.new_empty(self.size * len(x), *x.shape[1:])
        dist.all_gather(list(whole.chunk(self.size)), x.contiguous())
        return whole

    def all_reduce_sum(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over the ranks, on every rank, with gradient.

        The gradient of each rank's tensor is the sum of the gradients that all ranks have for the
        result, so a loss that is a mean over the ranks has the gradient of the whole batch.
        Collective in the forward and in the backward pass.
        """
        if self.size == 1:
            return x
        total: torch.Tensor = _Sum.apply(x)
        return total


class _Sum(torch.autograd.Function):
    """An all-reduce whose gradient is an all-reduce too."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: torch.Tensor) -> torch.Tensor:
        return _Sum.forward(ctx, gradients[0])


def single_rank() -> Ranks:
    """One process without peers, on the accelerator if there is one."""
    found = torch.accelerator.current_accelerator(check_available=True)  # a CUDA build names one
    return Ranks(0, 1, torch.device(found or "cpu"))


def connect(hang_seconds: float = 0) -> Ranks:
    """Join the ranks that `deepspeed`, `torchrun` or `srun` started; alone without a launcher.

    Args:
        hang_seconds: timeout for joining the other ranks. Collectives get one minute more, so
            that the watchdog speaks first. 0: DeepSpeed's own timeout.

    Raises:
        ClusterError: if the other ranks cannot be reached.
    """
    export_slurm_ranks()
    for key, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(key, value)
    size = int(os.environ["WORLD_SIZE"])
    local_size = int(os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))
    if size == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0")  # a free port, bound at once
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
    warnings.filterwarnings("ignore", category=FutureWarning)
    with _without_mlflow():
        import deepspeed
    from deepspeed.accelerator import get_accelerator

    deepspeed.utils.logger.setLevel(logging.ERROR)
    accelerator = get_accelerator()
    local_rank = int(os.environ["LOCAL_RANK"])
    if accelerator.device_name() == "cpu":
        # Only inference uses the one op that is looked up here, and its first use compiles it for
        # minutes in silence. To ask which ops can be compiled would run the compiler in each rank.
        deepspeed.ops.__compatible_ops__ = {}
    else:
        accelerator.set_device(local_rank)
    try:
        limit = {"timeout": timedelta(seconds=hang_seconds + 60)} if hang_seconds else {}
        deepspeed.init_distributed(verbose=False, **limit)
    except (RuntimeError, ValueError) as error:
        raise ClusterError(
            f"rank {os.environ['RANK']} of {size} could not reach the others at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}: "
            f"{first_line(error)}"
        ) from None
    device = torch.device(accelerator.current_device_name())
    return Ranks(int(os.environ["RANK"]), size, device)


@contextmanager
def _without_mlflow() -> Iterator[None]:
    """Let no import in this thread find MLflow.

    DeepSpeed's autotuner would import it if it is there, which takes three seconds of every rank.
    """
    thread = threading.get_ident()

    class Hidden(MetaPathFinder):
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "mlflow" and threading.get_ident() == thread:
                raise ImportError("DeepSpeed needs no MLflow here")

    finder = Hidden()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
