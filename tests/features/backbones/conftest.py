"""Fixtures of the backbones' tests: packages that they need, and sounds and frames."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest


def needs(package: str) -> None:
    """Skip a test whose package is not installed."""
    if find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")


@pytest.fixture(scope="session")
def torchvision() -> Any:
    """The package. Its wheel on PyPI is for CUDA; a torch for CPUs lacks its compiled operators.

    No backbone uses them. torch is told that they exist, without which the package is no import.
    """
    needs("torchvision")
    try:
        import torchvision
    except RuntimeError:
        import torch

        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor"
            )
        import torchvision
    return torchvision


@pytest.fixture(scope="session")
def transformers(request: pytest.FixtureRequest) -> Any:
    """The package, which imports torchvision if that is installed."""
    needs("transformers")
    if find_spec("torchvision"):
        request.getfixturevalue("torchvision")
    import transformers

    return transformers


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """Three pictures of noise, uint8 `[3, 224, 224, 3]`."""
    return np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)


def sounds(rate: int) -> np.ndarray:
    """Three seconds `[3, rate]`: a tone, another one, and noise."""
    times = np.arange(rate) / rate
    noise = np.random.default_rng(0).normal(size=rate)
    waves = [np.sin(2 * np.pi * 440 * times), np.sin(2 * np.pi * 3000 * times), noise]
    return (0.2 * np.stack(waves)).astype(np.float32)
