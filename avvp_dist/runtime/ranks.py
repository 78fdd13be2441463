"""This process among its peers: rank, device, and what the ranks tell each other."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.abc import MetaPathFinder
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.autograd.function import FunctionCtx
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from avvp_dist.errors import ClusterError, first_line
from avvp_dist.json_values import parse_value
from avvp_dist.runtime.devices import (
    CPU,
    Agreement,
    Place,
    accelerator,
    agree,
    own_place,
    warn_of_cpu,
)
from avvp_dist.runtime.launched import LOCAL_RANK, launched_local_rank
from avvp_dist.runtime.slurm import export_slurm_ranks

_PATIENCE = timedelta(minutes=10)
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

    def gather_object(self, value: T) -> list[T]:
        """Plain values of all ranks, on rank 0; an empty list on the others."""
        if self.size == 1:
            return [value]
        values: list[T] | None = [value] * self.size if self.is_main else None
        dist.gather_object(value, values)
        return values or []

    def all_reduce_sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over the ranks in its dtype, on every rank.

        The gradient of each rank's summand is the sum of the gradients that all ranks have for the
        total, as in `all_gather`. Collective in the forward pass, and in the backward pass of a
        tensor with gradient.
        """
        if self.size == 1:
            return value
        total: torch.Tensor = _AllReduceSum.apply(value)
        return total

    def all_reduce_mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over the ranks in float32, on every rank; without gradient."""
        return self.all_reduce_sum(value.detach().float()) / self.size

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

    def passes(self, items: int, at_once: int) -> int:
        """Number of forward passes over the `own_slice` of each rank, equal on all ranks.

        Under ZeRO 3 each pass is a collective, so a rank may not take fewer of them.
        """
        return max(1, -(-items // (self.size * at_once)))

    def interleave(self, part: NDArray[Scalar]) -> NDArray[Scalar]:
        """The results for `own_slice(items)` of all ranks, in the order of `items`, on rank 0.

        The inverse of `own_slice`. Other ranks get no rows.
        """
        if self.size == 1:
            return part
        parts = self.gather_object(part)
        joined = np.empty((sum(map(len, parts)), *part.shape[1:]), part.dtype)
        for rank, rows in enumerate(parts):
            joined[rank :: self.size] = rows
        return joined

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """The rows `[n, ...]` of all ranks, one rank after the other; n is equal on all ranks.

        The gradient of each rank's rows is the sum of the gradients that all ranks have for them,
        so a loss that is a mean over the ranks has the gradient of the whole batch. Collective in
        the forward pass, and in the backward pass of a tensor with gradient.
        """
        if self.size == 1:
            return x
        everyone: torch.Tensor = _AllGather.apply(x, self.size)
        return everyone


class _AllGather(torch.autograd.Function):
    """An all-gather whose gradient is a reduce-scatter.

    torch 2.13 has new names for both collectives, which torch 2.9 does not know.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, size: int) -> torch.Tensor:
        everyone = x.new_empty(size * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(everyone, x.contiguous())
        return everyone

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        own = gradient.new_empty(len(gradient) // dist.get_world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own, None


class _AllReduceSum(torch.autograd.Function):
    """An all-reduce whose gradient is one too."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: torch.Tensor) -> torch.Tensor:
        return _AllReduceSum.forward(ctx, *gradients)


def single_rank(device: str = "auto") -> Ranks:
    """One process without peers, on the accelerator if there is one.

    Args:
        device: `cpu` takes the CPU; `auto` warns if it must take it beside GPUs.
    """
    if device == "cpu":
        return Ranks(0, 1, torch.device("cpu"))
    warn_of_cpu()
    return Ranks(0, 1, accelerator() or torch.device("cpu"))


def connect(hang_seconds: float = 0, device: str = "auto") -> Ranks:
    """Join the ranks that `deepspeed`, `torchrun` or `srun` started; alone without a launcher.

    Rank 0 prints the number of ranks and their devices. Each rank gets its part of the host's cores
    as threads of torch, unless OMP_NUM_THREADS says how many.

    Args:
        hang_seconds: timeout for joining the other ranks. Collectives get one minute more, so
            that the watchdog speaks first. 0: ten minutes.
        device: `auto` takes an accelerator, or the CPU of a host that has none; `cpu` the CPU.

    Raises:
        ClusterError: if the other ranks cannot be reached, a GPU is there and cannot be used, or
            ranks and GPUs do not fit together.
    """
    export_slurm_ranks()
    for key, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(key, value)
    if os.environ["WORLD_SIZE"] == "1":
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0")  # a free port, bound at once
    place = own_place(device, launched_local_rank())
    chosen = _take(place)
    if not dist.is_initialized():
        _meet(place, chosen, timedelta(seconds=hang_seconds + 60) if hang_seconds else _PATIENCE)
    warnings.filterwarnings("ignore", category=FutureWarning)
    with _without_mlflow():
        import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    if chosen.type == "cpu":
        # Only inference uses the one op that is looked up here, and its first use compiles it for
        # minutes in silence. To ask which ops can be compiled would run the compiler in each rank.
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(verbose=False)
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), chosen)


def _take(place: Place) -> torch.device:
    """The device of a place, told to DeepSpeed before that is imported."""
    found = None if place.device == CPU else accelerator()
    if found is None:
        os.environ["DS_ACCELERATOR"] = "cpu"
        return torch.device("cpu")
    # DeepSpeed takes LOCAL_RANK for the number of the device.
    os.environ[LOCAL_RANK] = str(place.local_rank)
    os.environ["LOCAL_RANK"] = str(place.index)
    torch.accelerator.set_device_index(place.index)
    return torch.device(found.type, place.index)


def _meet(place: Place, device: torch.device, timeout: timedelta) -> None:
    """Join the process group after all ranks have compared their places.

    The comparison needs no collective, so it names what would make a collective fail or hang.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = dist.get_default_backend_for_device(device)
    try:
        store, *_ = next(rendezvous("env://", rank, size, timeout=timeout))
        agreement = _agree(PrefixStore("places", store), rank, size, place, backend)
        torch.set_num_threads(agreement.threads[rank])
        dist.init_process_group(
            backend,
            store=PrefixStore("default_pg", store),
            rank=rank,
            world_size=size,
            timeout=timeout,
            device_id=device if device.type == "cuda" and size > 1 else None,
        )
        started = torch.zeros(1, device=device)
        dist.all_reduce(started)
        started.item()  # a backend may fail only when it is first used
    except dist.DistBackendError as error:
        raise ClusterError(
            f"rank {rank} of {size}: {backend} does not work on {place.device} of {place.host}: "
            f"{str(error).strip().splitlines()[-1]}",
            remedy="NCCL_DEBUG=INFO says more",
        ) from None
    except (RuntimeError, ValueError) as error:
        raise ClusterError(
            f"rank {rank} of {size} could not reach the others at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}: "
            f"{first_line(error)}"
        ) from None


def _agree(store: Store, rank: int, size: int, place: Place, backend: str) -> Agreement:
    """Conclusions of rank 0 from the places of all ranks, on every rank; rank 0 prints them.

    Raises:
        ClusterError: if the ranks cannot train together.
    """
    store.set(str(rank), json.dumps(asdict(place)))
    if rank == 0:
        places = [parse_value(Place, json.loads(store.get(str(n)))) for n in range(size)]
        store.set("agreement", json.dumps(asdict(agree(places, backend))))
    agreement = parse_value(Agreement, json.loads(store.get("agreement")))
    if agreement.error:
        raise ClusterError(agreement.error, remedy=agreement.remedy, shared=True)
    if rank == 0:
        print(agreement.line, flush=True)
        if agreement.warning:
            print(f"warning: {agreement.warning}", file=sys.stderr, flush=True)
    return agreement


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
