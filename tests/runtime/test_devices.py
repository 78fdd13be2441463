"""Why a host's GPUs are not used, and what the ranks' devices say together; all GPUs are faked."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from avvp_dist.runtime import devices
from avvp_dist.runtime.devices import (
    HostGpus,
    Place,
    TorchBuild,
    UnusedGpus,
    agree,
    cpu_quota,
    cuda_of_driver,
    explain,
    fair_threads,
    own_place,
)

CUDA = TorchBuild("2.13.0+cu130", cuda="13.0", driver=13000, complaint="No CUDA GPUs are available")
FILES = (Path("/dev/null"), Path("/dev/zero"))
NVIDIA, AMD = HostGpus("NVIDIA", 2, FILES), HostGpus("AMD", 8, FILES[:1])
H100 = "NVIDIA H100 80GB HBM3"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def node(cores: int, simd: int) -> str:
    return f"cpu_cores_count {cores}\nsimd_count {simd}\nmem_banks_count 1\n"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, "None"),
        ({"dev/nvidiactl": "", "dev/nvidia-uvm": ""}, "None"),
        ({"dev/nvidia0": "", "dev/nvidiactl": ""}, "1 NVIDIA GPU"),
        ({f"dev/nvidia{n}": "" for n in range(8)}, "8 NVIDIA GPUs"),
        ({"dev/dxg": ""}, "None"),  # a graphics card of another maker under WSL
        ({"dev/dxg": "", "usr/lib/wsl/lib/libcuda.so.1": ""}, "1 NVIDIA GPU"),
    ],
)
def test_device_files_tell_nvidias_gpus(files: dict[str, str], found: str, tmp_path: Path) -> None:
    assert str(HostGpus.find(write(tmp_path, files))) == found


def test_amds_gpus_are_those_beside_cpus(tmp_path: Path) -> None:
    write(tmp_path, {"dev/kfd": ""})
    topology = "sys/class/kfd/kfd/topology/nodes/"
    write(tmp_path, {f"{topology}0/properties": node(16, 40)})  # graphics inside a CPU
    assert HostGpus.find(tmp_path) is None
    write(tmp_path, {f"{topology}{n}/properties": node(0, 304) for n in (1, 2)})
    assert str(HostGpus.find(tmp_path)) == "2 AMD GPUs"


@pytest.mark.parametrize(
    ("gpus", "build", "variables", "reason", "remedy"),
    [
        (
            NVIDIA,
            CUDA,
            {"CUDA_VISIBLE_DEVICES": ""},
            "this host has 2 NVIDIA GPUs, but torch 2.13.0+cu130 can use none: "
            "CUDA_VISIBLE_DEVICES is empty",
            "Unset CUDA_VISIBLE_DEVICES",
        ),
        (NVIDIA, CUDA, {"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES is -1", "Unset"),
        (
            NVIDIA,
            CUDA,
            {"CUDA_VISIBLE_DEVICES": "7"},
            "CUDA_VISIBLE_DEVICES=7: No CUDA GPUs are available",
            "Correct or unset",
        ),
        (
            NVIDIA,
            replace(CUDA, driver=12040),
            {"CUDA_VISIBLE_DEVICES": "0,1"},
            "the driver supports CUDA 12.4, and torch is built for 13.0",
            "Update the driver, or install a torch that fits it (uv pip install --torch-backend",
        ),
        (NVIDIA, replace(CUDA, driver=0), {}, "libcuda.so.1 is not found", "--gpus all"),
        (
            NVIDIA,  # drivers fit all minor versions of their CUDA
            replace(CUDA, cuda="13.2", complaint="Error 802: system not yet initialized"),
            {},
            "Error 802: system not yet initialized",
            "nvidia-smi",
        ),
        (
            replace(NVIDIA, files=(Path("/dev/nvidia7"),)),
            CUDA,
            {},
            "this process may not open /dev/nvidia7",
            "Ask the scheduler for GPUs",
        ),
        (
            AMD,
            TorchBuild("2.13.0+rocm7.0", hip="7.0"),
            {"ROCR_VISIBLE_DEVICES": ""},
            "ROCR_VISIBLE_DEVICES is empty",
            "Unset ROCR_VISIBLE_DEVICES",
        ),
    ],
)
def test_the_reason_is_the_one_that_can_be_mended(
    gpus: HostGpus, build: TorchBuild, variables: dict[str, str], reason: str, remedy: str
) -> None:
    unused = explain(gpus, build, variables)
    assert unused.expected
    assert reason in unused.reason and remedy in unused.remedy


@pytest.mark.parametrize(
    ("gpus", "build", "kind"),
    [
        (NVIDIA, TorchBuild("2.13.0+cpu"), "torch 2.13.0+cpu is built for CPUs"),
        (AMD, CUDA, "torch 2.13.0+cu130 is built for CUDA 13.0"),
        (NVIDIA, TorchBuild("2.13.0+rocm7.0", hip="7.0"), "is built for ROCm 7.0"),
    ],
)
def test_a_torch_for_other_devices_is_named_with_the_command_that_mends_it(
    gpus: HostGpus, build: TorchBuild, kind: str
) -> None:
    unused = explain(gpus, build, {"CUDA_VISIBLE_DEVICES": ""})
    assert not unused.expected
    assert kind in unused.reason
    assert "uv pip install --torch-backend=auto --reinstall-package torch torch" in unused.remedy


def test_the_installed_torch_says_what_it_is_built_for() -> None:
    if torch.version.cuda or torch.version.hip:
        pytest.skip("torch is built for GPUs")
    said = TorchBuild(
        "x", driver=cuda_of_driver(), complaint="Torch not compiled with CUDA enabled"
    )
    assert replace(TorchBuild.installed(), version="x") == said


def test_a_cpu_beside_gpus_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "unused_gpus", lambda: UnusedGpus("no driver", "Install it", True))
    devices.warn_of_cpu.cache_clear()
    for _ in range(2):
        devices.warn_of_cpu()
    devices.warn_of_cpu.cache_clear()
    assert capsys.readouterr().err == "warning: the CPU is used: no driver. Install it\n"


# Places


def gpus(*identities: str, host: str = "a", visible: int = 0) -> list[Place]:
    """Ranks of one host, each with a GPU."""
    return [
        Place(host, n, (0,), device=H100, gpu_id=one, visible=visible or len(identities))
        for n, one in enumerate(identities)
    ]


def fake_gpus(monkeypatch: pytest.MonkeyPatch, count: int, broken: str = "") -> list[int]:
    """A torch that sees GPUs; the list gets the numbers of those that are set."""
    chosen: list[int] = []

    def set_device(index: int) -> None:
        assert index < count, "invalid device ordinal"
        if broken:
            raise RuntimeError(broken)
        chosen.append(index)

    module = SimpleNamespace(
        device_count=lambda: count,
        set_device=set_device,
        get_device_properties=lambda index: SimpleNamespace(name=H100, uuid=f"uuid-{index}"),
    )
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(devices, "accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    return chosen


@pytest.mark.parametrize(("visible", "local_rank", "index"), [(8, 3, 3), (1, 0, 0), (1, 3, 0)])
def test_a_rank_takes_its_gpu_or_the_only_one(
    visible: int, local_rank: int, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = fake_gpus(monkeypatch, visible)
    place = own_place("auto", local_rank)
    assert chosen == [place.index] == [index]
    assert (place.device, place.gpu_id, place.visible) == (H100, f"uuid-{index}", visible)


def test_a_gpu_that_fails_ends_the_training_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpus(monkeypatch, 2, broken="CUDA error: uncorrectable ECC error\nCompile with ...")
    agreement = agree([own_place("auto", 1)], "nccl")
    assert agreement.error == "GPU 1 cannot be used: CUDA error: uncorrectable ECC error"


@pytest.mark.parametrize(("device", "accelerator"), [("cpu", ""), ("auto", "cpu")])
def test_the_cpu_is_taken_beside_gpus_when_it_is_asked_for(
    device: str, accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fake_gpus(monkeypatch, 8) == []
    if accelerator:
        monkeypatch.setenv("DS_ACCELERATOR", accelerator)
    place = own_place(device, 3)
    assert (place.device, place.reason) == (devices.CPU, "")


def test_the_cpu_is_refused_where_torch_is_built_for_the_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_gpus(monkeypatch, 0)
    monkeypatch.setattr(devices, "accelerator", lambda: None)
    fault = UnusedGpus("this host has 8 NVIDIA GPUs, but ...", "Unset it", expected=True)
    monkeypatch.setattr(devices, "unused_gpus", lambda: fault)
    place = own_place("auto", 0)
    agreement = agree([place, place], "gloo")
    assert agreement.error == fault.reason
    assert agreement.remedy == "Unset it, or set trainer.device=cpu"
    # A host other than rank 0's is named.
    other = agree([*gpus("x"), replace(place, host="b")], "nccl")
    assert other.error == f"rank 1 on b: {fault.reason}"
    monkeypatch.setattr(devices, "unused_gpus", lambda: replace(fault, expected=False))
    warned = agree([own_place("auto", 0)], "gloo")
    assert (warned.error, warned.warning) == ("", f"{fault.reason}. Unset it")


@pytest.mark.parametrize(
    ("places", "backend", "line"),
    [
        (gpus(*"abcdefgh"), "nccl", f"8 ranks on 1 host: {H100}, NCCL"),
        (gpus(*"abcd", visible=1), "nccl", f"4 ranks on 1 host: {H100}, NCCL"),
        (
            [*gpus("a"), replace(gpus("b", host="b")[0], device="NVIDIA A100"), *gpus("c")[:0]],
            "nccl",
            f"2 ranks on 2 hosts: 1 x {H100}, 1 x NVIDIA A100, NCCL",
        ),
        ([Place("a", 0, (0, 1))], "gloo", "1 rank on 1 host: CPU, 2 threads, gloo"),
        (
            [Place("a", n, (0, 1)) for n in range(2)],
            "gloo",
            "2 ranks on 1 host: CPU, 1 thread each, gloo",
        ),
        (
            [Place("a", 0, (0, 1)), Place("b", 0, (0, 1, 2))],
            "gloo",
            "2 ranks on 2 hosts: CPU, 2 to 3 threads each, gloo",
        ),
    ],
)
def test_the_line_says_ranks_hosts_and_devices(
    places: list[Place], backend: str, line: str
) -> None:
    agreement = agree(places, backend)
    assert (agreement.line, agreement.error) == (line, "")


@pytest.mark.parametrize(
    ("places", "error"),
    [
        (gpus(*"abcd", visible=2), "4 ranks on a, but each of them sees 2 GPUs"),
        (
            gpus("GPU-1", "GPU-1", visible=1),
            "ranks 0 and 1 share GPU GPU-1 of a: 2 ranks there see 1 GPU",
        ),
        (
            [*gpus("x"), Place("b", 0, (0,))],
            f"rank 1 on b has only the CPU, rank 0 on a has {H100}",
        ),
        ([Place("a", 0, (0,)), *gpus("x", host="b")], f"rank 1 on b has {H100}, rank 0 on a has"),
    ],
)
def test_ranks_that_cannot_train_together_are_named(places: list[Place], error: str) -> None:
    agreement = agree(places, "nccl")
    assert agreement.error.startswith(error)
    assert agreement.remedy


# Threads

ALL, HALVES = tuple(range(8)), (tuple(range(4)), tuple(range(4, 8)))


@pytest.mark.parametrize(
    ("places", "threads"),
    [
        ([Place("a", n, ALL) for n in range(4)], (2, 2, 2, 2)),
        # Each rank is bound to cores of its own, as `srun --cpus-per-task` does.
        ([Place("a", n, cores) for n, cores in enumerate(HALVES)], (4, 4)),
        ([Place("a", n, ALL[:2]) for n in range(3)], (1, 1, 1)),  # more ranks than cores
        ([Place(host, 0, ALL) for host in "ab"], (8, 8)),
        ([Place("a", n, ALL, quota=4.0) for n in range(2)], (2, 2)),  # of a container
        ([Place("a", 0, ALL, threads=3), Place("a", 1, ALL)], (3, 4)),  # OMP_NUM_THREADS
        ([replace(one, cores=ALL) for one in gpus("x", "y")], (4, 4)),
    ],
)
def test_ranks_share_the_cores_that_they_may_use(
    places: list[Place], threads: tuple[int, ...]
) -> None:
    assert fair_threads(places) == agree(places, "gloo").threads == threads


def test_a_place_has_the_cores_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 3})
    place = own_place("cpu", 0)
    assert (place.cores, place.threads) == ((3, 5), 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert own_place("cpu", 0).threads == torch.get_num_threads()


@pytest.mark.parametrize(("text", "cores"), [("150000 100000\n", 1.5), ("max 100000\n", 0.0)])
def test_the_quota_of_a_container_is_read(text: str, cores: float, tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) == 0
    assert cpu_quota(write(tmp_path, {"sys/fs/cgroup/cpu.max": text})) == cores
