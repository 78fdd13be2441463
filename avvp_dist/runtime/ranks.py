"""This process among its peers: rank, device, and what the ranks say to each other."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from avvp_dist.errors import ClusterError, first_line
from avvp_dist.runtime.slurm import export_slurm_ranks


@dataclass(frozen=True)
class Ranks:
    """Which rank this is, of how many, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's plain value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def all_reduce_mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over the ranks, on every rank."""
        value = value.detach().float().clone()
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def all_reduce_any(self, *flags: bool) -> tuple[bool, ...]:
        """Which of the flags are set on any rank, on every rank."""
        if self.size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return tuple(map(bool, raised.tolist()))

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every rank's plain value, on every rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def union(self, numbers: set[int]) -> set[int]:
        """The numbers that any rank has, on every rank."""
        return set().union(*self.all_gather_object(numbers))

    def part(self, items: NDArray[Any]) -> NDArray[Any]:
        """This rank's share of `items`: every size-th, from its own number on."""
        return items[self.rank :: self.size]

    def join(self, part: NDArray[Any]) -> NDArray[Any]:
        """The results for `part(items)` of all ranks, in the order of `items`, on every rank."""
        if self.size == 1:
            return part
        parts = self.all_gather_object(part)
        joined = np.empty((sum(map(len, parts)), *part.shape[1:]), part.dtype)
        for rank, rows in enumerate(parts):
            joined[rank :: self.size] = rows
        return joined

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """The rows `[n, ...]` of all ranks one after the other; n is the same on each."""
        if self.size == 1:
            return x
        whole = x.new_empty(self.size * len(x), *x.shape[1:])
        dist.all_gather(list(whole.chunk(self.size)), x.contiguous())
        return whole

    def all_reduce_sum(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over the ranks, on every rank, with gradient.

        A rank's tensor gets the sum of what all ranks ask of it, so a loss that is a mean over the
        ranks has the gradient of the whole. Collective, forwards and backwards.
        """
        if self.size == 1:
            return x
        total: torch.Tensor = _Sum.apply(x)
        return total


class _Sum(torch.autograd.Function):
    """All-reduce, whose gradient is another one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _Sum.forward(ctx, gradients[0])


def single_rank() -> Ranks:
    """One process without peers, on the accelerator if there is one."""
    found = torch.accelerator.current_accelerator(check_available=True)  # a CUDA build names one
    return Ranks(0, 1, torch.device(found or "cpu"))


def connect(hang_seconds: float = 0) -> Ranks:
    """Join the ranks that `deepspeed`, `torchrun` or `srun` started; alone without a launcher.

    Args:
        hang_seconds: how long to wait for the others, now and, with a minute more, so that the
            watchdog speaks first, in each collective; 0: as long as DeepSpeed does.

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
        os.environ.setdefault("MASTER_PORT", "0")  # any free one, and taken at once
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
    warnings.filterwarnings("ignore", category=FutureWarning)
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    deepspeed.utils.logger.setLevel(logging.ERROR)
    accelerator = get_accelerator()
    local_rank = int(os.environ["LOCAL_RANK"])
    if accelerator.device_name() == "cpu":
        # It would be compiled at first use, for minutes and in silence, and only inference uses it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
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
