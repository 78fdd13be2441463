"""Frames and images for the tests of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np


def frame(image: np.ndarray) -> Any:
    """A decoded frame of an RGB image."""
    import pytest

    av = pytest.importorskip("av", reason="the package av is not installed")
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")


def gradient(width: int, height: int) -> np.ndarray:
    """An image `[height, width, 3]`: red to the right, green downwards, blue a fine texture."""
    y, x = np.mgrid[:height, :width]
    texture = 127.5 + 90 * np.sin(x / 5) * np.sin(y / 7)
    return np.stack([255 * (x + 0.5) / width, 255 * (y + 0.5) / height, texture], -1).astype(
        np.uint8
    )
