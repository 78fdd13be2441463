"""Versions of the libraries, the driver and the GPU, and whether they stand one another."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import faiss
import torch

from avvp_dist.runtime.ranks import connect
from tools.bench.gpu.rows import Note, Setting, Versions


def run(setting: Setting, deadline: float) -> Iterator[Versions | Note]:
    """Import torch, faiss and DeepSpeed in one process that finds no nvcc on its path."""
    nvcc = shutil.which("nvcc") or ""
    _hide_nvcc()
    connect()  # imports DeepSpeed

    on_gpu = setting.device == "gpu"
    gpus = torch.cuda.device_count()
    properties = torch.cuda.get_device_properties(0) if gpus else None
    found = Versions(
        python=platform.python_version(),
        torch=torch.__version__,
        torch_cuda=torch.version.cuda or "",
        nccl=".".join(map(str, torch.cuda.nccl.version())) if on_gpu else "",
        deepspeed=version("deepspeed"),
        faiss=faiss.__version__,
        faiss_gpus=faiss.get_num_gpus(),
        cuda_libraries=_cuda_libraries(),
        nvcc=nvcc,
        driver=_driver(),
        gpu=properties.name if properties else "",
        gpus=gpus,
        memory_bytes=properties.total_memory if properties else 0,
    )
    yield found
    if on_gpu and not hasattr(faiss, "StandardGpuResources"):
        yield Note("faiss is a CPU build: pip uninstall faiss-cpu, pip install faiss-gpu", True)
    elif on_gpu and not found.faiss_gpus:
        yield Note(f"torch sees {gpus} GPUs, faiss {faiss.__version__} none: a newer driver", True)


def _hide_nvcc() -> None:
    """Take the folders of CUDA's compiler from the environment."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        os.environ.pop(name, None)
    folders = os.environ.get("PATH", "").split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(f for f in folders if not (Path(f) / "nvcc").exists())


def _cuda_libraries() -> list[str]:
    """File names of the CUDA runtimes that this process has loaded."""
    maps = Path("/proc/self/maps").read_text()
    return sorted(set(re.findall(r"/(libcudart[^/\s]*)$", maps, re.MULTILINE)))


def _driver() -> str:
    """Version of the NVIDIA driver; empty where `nvidia-smi` is not there."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if not shutil.which(query[0]):
        return ""
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.strip().partition("\n")[0]
