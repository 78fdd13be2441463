"""Backbones that need no weights, by the names of which tests ask for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np

from avvp_dist.features.backbones.weights import Weights

LIGHT, LOUDNESS, FRAGILE = (f"{__name__}:{kind}" for kind in ("Light", "Loudness", "Fragile"))


class Weightless(Weights):
    """Weights of a backbone that needs none."""

    def find(self, name: str, given: Any, *, download: bool = False) -> Path:
        return Path()


class Light:
    """Mean light of a picture, four times over."""

    name: ClassVar[str] = "light"
    stream: ClassVar[str] = "visual"
    dim: ClassVar[int] = 4
    rate: ClassVar[int] = 8
    weights: ClassVar[Weights] = Weightless("0" * 64, "")

    def __init__(self, given: Any) -> None: ...

    def picture(self, frame: av.VideoFrame) -> np.ndarray:
        return np.asarray(frame.reformat(8, 8, "rgb24").to_ndarray())

    def features(self, pictures: np.ndarray) -> np.ndarray:
        return np.repeat(1 + pictures.mean((1, 2, 3), dtype=np.float32)[:, None], 4, 1)


class Fragile(Light):
    """It ends the process at a file that is light in its first second."""

    def features(self, pictures: np.ndarray) -> np.ndarray:
        if pictures[: self.rate].max() > 100:
            os._exit(1)
        return super().features(pictures)


class Loudness:
    """Mean loudness of a second, three times over."""

    name: ClassVar[str] = "loudness"
    stream: ClassVar[str] = "audio"
    dim: ClassVar[int] = 3
    rate: ClassVar[int] = 8000
    weights: ClassVar[Weights] = Weightless("1" * 64, "")

    def __init__(self, given: Any) -> None: ...

    def features(self, sound: np.ndarray) -> np.ndarray:
        return np.repeat(0.01 + np.abs(sound).mean(1, dtype=np.float32)[:, None], 3, 1)
