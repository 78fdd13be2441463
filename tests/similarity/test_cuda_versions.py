"""CUDA of torch, faiss and the driver: what does not go together ends with one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from avvp_dist.errors import ClusterError
from avvp_dist.similarity.cuda_versions import CudaVersions


def test_the_driver_must_support_the_newer_of_both() -> None:
    for driver in ("", "13.0", "14.1"):
        CudaVersions("13.0", "12", driver).check()
    CudaVersions("", "", "11.4").check()
    with pytest.raises(ClusterError, match="580 or newer") as raised:
        CudaVersions("13.0", "12", "12.4").check()
    assert "CUDA 13.0, faiss for CUDA 12, the driver supports CUDA 12.4" in str(raised.value)
    with pytest.raises(ClusterError, match="525 or newer"):
        CudaVersions("", "12", "11.8").check()


def test_a_faiss_without_its_cuda_libraries_is_named(root: Path, tmp_path: Path) -> None:
    """A package that fails as the real one does, and asks for CUDA 12 in its metadata."""
    (tmp_path / "faiss.py").write_text("raise RuntimeError('libcudart.so.12 is missing')\n")
    (tmp_path / "faiss_gpu-1.dist-info").mkdir()
    (tmp_path / "faiss_gpu-1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: faiss-gpu\nVersion: 1\n"
        "Requires-Dist: numpy\nRequires-Dist: nvidia-cuda-runtime-cu12<13,>=12.6\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "avvp_dist.similarity.cuda_versions"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "libcudart.so.12 is missing" in line and "faiss for CUDA 12" in line and ".[gpu]" in line
