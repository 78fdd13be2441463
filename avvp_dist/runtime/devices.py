"""The device of this process: which one it is, its neighbours, and why it may be the wrong one.

Torch is imported where it is asked, because a host without GPU files needs no answer.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from avvp_dist.errors import first_line

if TYPE_CHECKING:
    import torch

CPU = "CPU"
_ROOT = Path("/")
INSTALL = "uv pip install --torch-backend=auto --reinstall-package torch torch"
"""Command that installs the torch that fits this host's driver."""
_HIDDEN = ("", "-1", "NoDevFiles")
"""Values of the variables below that hide all GPUs; the last is Slurm's."""
_VISIBLE = {
    "NVIDIA": ("CUDA_VISIBLE_DEVICES",),
    "AMD": ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
}
"""Variables that choose among the GPUs of a maker."""


@dataclass(frozen=True)
class HostGpus:
    """GPUs of one maker on this host, as the kernel shows them."""

    maker: str
    count: int
    files: tuple[Path, ...]
    """Device files that a process must be able to open."""

    @classmethod
    def find(cls, root: Path = _ROOT) -> HostGpus | None:
        """NVIDIA's GPUs, else AMD's; None if there are none.

        Under WSL all GPUs are one file, and NVIDIA's driver is told by its library. GPUs inside AMD
        CPUs do not count: torch supports few of them.
        """
        files = tuple(sorted(root.glob("dev/nvidia[0-9]*")))
        if not files and any(root.glob("usr/lib/wsl/lib/libcuda.so*")):
            files = tuple(root.glob("dev/dxg"))
        if files:
            return cls("NVIDIA", len(files), files)
        files = tuple(root.glob("dev/kfd"))
        nodes = root.glob("sys/class/kfd/kfd/topology/nodes/*/properties")
        properties = [dict(line.split()[:2] for line in _lines(node)) for node in nodes]
        count = sum(
            node.get("cpu_cores_count") == "0" and node.get("simd_count") != "0"
            for node in properties
        )
        return cls("AMD", count, files) if files and count else None

    def __str__(self) -> str:
        return _count(self.count, f"{self.maker} GPU")


@dataclass(frozen=True)
class TorchBuild:
    """The GPUs that torch is built for, and what it says about those of this host."""

    version: str
    cuda: str = ""
    """CUDA version of the build, such as 13.0; empty for other builds."""
    hip: str = ""
    """ROCm version of the build; empty for other builds."""
    driver: int = 0
    """Result of `cuda_of_driver`."""
    complaint: str = ""
    """First line of torch's own error when it is asked for a GPU."""

    @classmethod
    def installed(cls) -> TorchBuild:
        """The torch of this process."""
        import torch

        complaint = ""
        try:
            torch.cuda.init()
        except (AssertionError, RuntimeError) as error:
            complaint = first_line(error).rstrip(".")
        cuda, hip = torch.version.cuda or "", torch.version.hip or ""
        return cls(torch.__version__, cuda, hip, cuda_of_driver(), complaint)

    def fits(self, gpus: HostGpus) -> bool:
        """Whether it is built for GPUs of this maker."""
        return bool(self.cuda if gpus.maker == "NVIDIA" else self.hip)


@dataclass(frozen=True)
class UnusedGpus:
    """GPUs of this host that torch does not use: why, and what to do."""

    reason: str
    remedy: str
    expected: bool
    """Whether torch is built for them."""

    def __str__(self) -> str:
        return f"{self.reason}. {self.remedy}"


def explain(gpus: HostGpus, build: TorchBuild, variables: Mapping[str, str]) -> UnusedGpus:
    """Why torch sees none of the host's GPUs.

    Args:
        variables: environment of the process.
    """
    start = f"this host has {gpus}, but torch {build.version} "
    if not build.fits(gpus):
        kind = f"CUDA {build.cuda}" if build.cuda else f"ROCm {build.hip}" if build.hip else "CPUs"
        fitting = f"Install one that fits: {INSTALL}"
        return UnusedGpus(f"{start}is built for {kind}", fitting, expected=False)
    reason, remedy = _cause(gpus, build, variables)
    return UnusedGpus(f"{start}can use none: {reason}", remedy, expected=True)


def _cause(gpus: HostGpus, build: TorchBuild, variables: Mapping[str, str]) -> tuple[str, str]:
    """Reason and remedy, the most certain reason first."""
    if not any(os.access(file, os.R_OK | os.W_OK) for file in gpus.files):
        asked = "Ask the scheduler for GPUs, or the administrator for access"
        return f"this process may not open {gpus.files[0]}", asked
    limits = {name: variables[name].strip() for name in _VISIBLE[gpus.maker] if name in variables}
    for name, value in limits.items():
        if value in _HIDDEN:
            return f"{name} is {value or 'empty'}", f"Unset {name}"
    if build.cuda and not build.driver:
        library = "the driver's library libcuda.so.1 is not found"
        return library, "Install the driver, or give it to the container (--gpus all)"
    if build.cuda and build.driver // 1000 < int(build.cuda.partition(".")[0]):
        supported = f"{build.driver // 1000}.{build.driver % 1000 // 10}"
        return (
            f"the driver supports CUDA {supported}, and torch is built for {build.cuda}",
            f"Update the driver, or install a torch that fits it ({INSTALL})",
        )
    for name, value in limits.items():
        return f"{name}={value}: {build.complaint}", f"Correct or unset {name}"
    return build.complaint or "it does not say why", "Check the driver with nvidia-smi or rocm-smi"


def cuda_of_driver() -> int:
    """CUDA version that NVIDIA's driver supports, such as 12040 for 12.4; 0 without a driver."""
    version = ctypes.c_int(0)
    with suppress(OSError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value


def accelerator() -> torch.device | None:
    """The kind of accelerator that torch can use; None: only the CPU."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `explain` says it better
        return torch.accelerator.current_accelerator(check_available=True)


@cache
def unused_gpus() -> UnusedGpus | None:
    """GPUs of this host that torch cannot use; None if it can, or if there are none."""
    gpus = HostGpus.find()
    if gpus is None or accelerator() is not None:
        return None
    return explain(gpus, TorchBuild.installed(), os.environ)


@cache
def warn_of_cpu() -> None:
    """Say on stderr, once in a process, if it leaves GPUs of its host unused."""
    unused = unused_gpus()
    if unused is not None:
        print(f"warning: the CPU is used: {unused}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Place:
    """Host, device and cores of a rank."""

    host: str
    local_rank: int
    cores: tuple[int, ...]
    """Cores that the process may use."""
    quota: float = 0.0
    """Cores' worth of time that the host's container may use; 0: no limit."""
    threads: int = 0
    """Threads that OMP_NUM_THREADS asks for; 0: it is not set."""
    device: str = CPU
    """Model of its GPU, or `CPU`."""
    gpu_id: str = ""
    """Identity of its GPU, equal in all processes; empty if it is not known."""
    visible: int = 0
    """GPUs that the process can use."""
    reason: str = ""
    """Why it uses none of its host's GPUs; empty if it does, or if there are none."""
    remedy: str = ""
    expected: bool = False
    """Whether torch is built for them."""

    @property
    def index(self) -> int:
        """Number of its GPU among the visible ones. A rank that sees one has it for itself."""
        return self.local_rank if self.local_rank < self.visible else 0


def own_place(device: str, local_rank: int) -> Place:
    """The place of this rank, whose GPU becomes torch's current device.

    Args:
        device: `auto`, or `cpu` where no GPU is wanted. DeepSpeed's DS_ACCELERATOR=cpu says the
            same.
    """
    import torch

    threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else 0
    cores = tuple(sorted(os.sched_getaffinity(0)))
    place = Place(socket.gethostname(), local_rank, cores, cpu_quota(), threads)
    if device == "cpu" or os.environ.get("DS_ACCELERATOR") == "cpu":
        return place
    found = accelerator()
    if found is not None:
        module = torch.get_device_module(found)
        place = replace(place, visible=module.device_count())
        try:
            module.set_device(place.index)
            properties = module.get_device_properties(place.index)
        except RuntimeError as error:  # it is broken, full, or another process has it for itself
            reason = f"GPU {place.index} cannot be used: {first_line(error)}"
            return replace(place, reason=reason, remedy="Look at nvidia-smi", expected=True)
        identity = str(getattr(properties, "uuid", ""))
        return replace(place, device=properties.name, gpu_id=identity)
    unused = unused_gpus()
    return place if unused is None else replace(place, **vars(unused))


def cpu_quota(root: Path = _ROOT) -> float:
    """Cores' worth of time that this container may use; 0: no limit."""
    allowed, _, period = " ".join(_lines(root / "sys/fs/cgroup/cpu.max")).partition(" ")
    return int(allowed) / int(period) if allowed.isdigit() else 0.0


def _lines(file: Path) -> list[str]:
    """Lines of a file of the kernel; none if it cannot be read."""
    with suppress(OSError):
        return file.read_text().splitlines()
    return []


@dataclass(frozen=True)
class Agreement:
    """Conclusions from the places of all ranks, made by rank 0."""

    line: str
    """Number of ranks and hosts, devices, and how they communicate."""
    threads: tuple[int, ...]
    """Threads of torch for each rank."""
    warning: str = ""
    error: str = ""
    """Why the ranks cannot train together; empty if they can."""
    remedy: str = ""


def agree(places: Sequence[Place], backend: str) -> Agreement:
    """Compare the places of all ranks, in their order.

    Args:
        backend: library of the collectives, such as nccl.
    """
    threads = fair_threads(places)
    line = _line(places, threads, backend)
    said = {
        rank: f"rank {rank} on {place.host}: {place.reason}" if rank else place.reason
        for rank, place in enumerate(places)
        if place.reason
    }
    for rank, reason in said.items():
        if places[rank].expected:
            remedy = f"{places[rank].remedy}, or set trainer.device=cpu"
            return Agreement(line, threads, error=reason, remedy=remedy)
    warning = next((f"{reason}. {places[rank].remedy}" for rank, reason in said.items()), "")
    error, remedy = _conflict(places)
    return Agreement(line, threads, warning, error, remedy)


def _conflict(places: Sequence[Place]) -> tuple[str, str]:
    """Why the ranks' devices do not fit together, and what to do; empty if they do."""
    hosts = Counter(place.host for place in places)
    owners: dict[str, int] = {}
    for rank, place in enumerate(places):
        ranks = max(hosts[place.host], place.local_rank + 1)
        if ranks > place.visible > 1:
            return (
                f"{ranks} ranks on {place.host}, but each of them sees {place.visible} GPUs",
                "Start one rank for each GPU; a rank must see one GPU or all of its host",
            )
        first = owners.setdefault(place.gpu_id, rank) if place.gpu_id else rank
        if first != rank:
            gpus = len({one.gpu_id for one in places if one.host == place.host})
            return (
                f"ranks {first} and {rank} share GPU {place.gpu_id} of {place.host}: "
                f"{hosts[place.host]} ranks there see {_count(gpus, 'GPU')}",
                "Start one rank for each GPU",
            )
        if (place.device == CPU) != (places[0].device == CPU):
            return (
                f"rank {rank} on {place.host} has {_named(place.device)}, rank 0 on "
                f"{places[0].host} has {_named(places[0].device)}",
                "Look at torch and the driver of both hosts, or set trainer.device=cpu",
            )
    return "", ""


def _named(device: str) -> str:
    return "only the CPU" if device == CPU else device


def fair_threads(places: Sequence[Place]) -> tuple[int, ...]:
    """Threads of each rank: its part of the cores that it may use, as others may use them too.

    OMP_NUM_THREADS decides where it is set.
    """
    hosts = Counter(place.host for place in places)
    users = Counter((place.host, core) for place in places for core in place.cores)
    threads = []
    for place in places:
        part = sum(1 / users[place.host, core] for core in place.cores)
        if place.quota:
            part = min(part, place.quota / hosts[place.host])
        threads.append(place.threads or max(1, int(part + 1e-6)))
    return tuple(threads)


def _line(places: Sequence[Place], threads: Sequence[int], backend: str) -> str:
    """Ranks, hosts and devices, such as `8 ranks on 1 host: NVIDIA H100 80GB HBM3, NCCL`."""
    kinds, hosts = Counter(place.device for place in places), {place.host for place in places}
    start = f"{_count(len(places), 'rank')} on {_count(len(hosts), 'host')}"
    devices = ", ".join(f"{n} x {kind}" if len(kinds) > 1 else kind for kind, n in kinds.items())
    if set(kinds) != {CPU}:
        return f"{start}: {devices}, {backend.upper()}"
    low, high = min(threads), max(threads)
    number = _count(low, "thread") if low == high else f"{low} to {high} threads"
    return f"{start}: {devices}, {number}{' each' * (len(places) > 1)}, {backend}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
