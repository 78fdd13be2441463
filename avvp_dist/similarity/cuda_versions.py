"""CUDA versions of torch, of faiss and of the driver, which meet in one process.

torch and faiss need not be built for the same CUDA. Each brings its own libraries, whose file names
carry the version, so one process loads both. The driver must support the newer of the two.

    python -m avvp_dist.similarity.cuda_versions     # loads both and names the versions
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires

from avvp_dist.entry import run
from avvp_dist.errors import ClusterError, ConfigError, first_line

_DRIVERS = {12: 525, 13: 580}
"""Oldest driver for each major version of CUDA (NVIDIA's CUDA Compatibility, table 1)."""


@dataclass(frozen=True)
class CudaVersions:
    """Versions of CUDA, such as 13.0; empty where there is none."""

    torch: str
    """Version that torch is built for."""
    faiss: str
    """Major version that faiss is built for."""
    driver: str
    """Newest version that the driver supports."""

    @classmethod
    def installed(cls) -> CudaVersions:
        """Versions of this environment; faiss itself is not loaded."""
        import torch

        return cls(torch.version.cuda or "", _faiss_cuda(), _driver_cuda())

    def __str__(self) -> str:
        """The three versions as one clause."""
        torch, faiss = (f"CUDA {v}" if v else "the CPU" for v in (self.torch, self.faiss))
        driver = f"the driver supports CUDA {self.driver}" if self.driver else "there is no driver"
        return f"torch is built for {torch}, faiss for {faiss}, {driver}"

    def check(self) -> None:
        """Raise a `ClusterError` if there is a driver that is too old for torch or faiss."""
        needed = max(_major(self.torch), _major(self.faiss))
        if self.driver and _major(self.driver) < needed:
            release = f"Driver {_DRIVERS[needed]} or newer" if needed in _DRIVERS else "A newer one"
            raise ClusterError(f"the GPU driver is too old: {self}", remedy=f"{release} fits both")


def unloadable(error: ImportError | RuntimeError) -> ConfigError:
    """Error for a faiss whose import failed, with the versions that should go together."""
    if isinstance(error, ModuleNotFoundError):
        return ConfigError(first_line(error), remedy="Install '.[cpu]' or '.[gpu]'")
    return ConfigError(
        f"faiss cannot be loaded: {first_line(error)}; {CudaVersions.installed()}",
        remedy="Install '.[gpu]' anew, which brings the CUDA libraries of both",
    )


def main() -> None:
    """Load torch and faiss into this process and print their versions.

    Raises:
        AvvpError: if one of them cannot be loaded, or the driver is too old for one.
    """
    try:
        import faiss  # noqa: F401 - it is loaded to see whether it can be
    except (ImportError, RuntimeError) as error:
        raise unloadable(error) from None
    versions = CudaVersions.installed()
    versions.check()
    print(f"torch and faiss are loaded: {versions}")


def _faiss_cuda() -> str:
    try:
        needed = " ".join(requires("faiss-gpu") or ())
    except PackageNotFoundError:
        return ""
    runtime = re.search(r"nvidia-cuda-runtime-cu(\d+)", needed)
    return runtime[1] if runtime else ""


def _driver_cuda() -> str:
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}" if version.value else ""


def _major(version: str) -> int:
    return int(version.split(".")[0]) if version else 0


if __name__ == "__main__":
    run(main)
