"""R(2+1)D-18 (Tran et al., CVPR 2018; trained on Kinetics-400): 512 numbers a second of motion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.features.backbones.backbone import package_missing
from avvp_dist.features.backbones.networks import (
    KINETICS,
    in_batches,
    network_with,
    normalised,
    read_weights,
    without_classifier,
)
from avvp_dist.features.backbones.weights import Weights
from avvp_dist.features.pictures import squashed

if TYPE_CHECKING:
    from av import VideoFrame

_SIDE, _BATCH = 112, 4


class R2Plus1D18:
    """The model of torchvision without its classifier, on pictures as HAN read them.

    A second is eight pictures of 112 x 112, whatever their shape was; torchvision's own
    preprocessing scales to 128 x 171 and crops.
    """

    name = "r2plus1d_18"
    stream = "motion"
    dim = 512
    rate = 8
    weights = Weights(
        sha256="91a641e6",
        address="https://download.pytorch.org/models/r2plus1d_18-91a641e6.pth",
        licence="BSD-3-Clause; trained on Kinetics-400",
    )

    def __init__(self, given: Mapping[str, str]) -> None:
        file = self.weights.find(self.name, given)
        try:
            from torchvision.models.video import r2plus1d_18
        except (ImportError, RuntimeError) as error:
            raise package_missing(self.name, "torchvision", error) from None
        weights = read_weights(file)
        self._network = network_with(without_classifier(r2plus1d_18), weights, self.name)

    def picture(self, frame: VideoFrame) -> NDArray[np.uint8]:
        return squashed(frame, _SIDE, _SIDE, bilinear=True)

    def features(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features `[n, 512]` of seconds, eight pictures of `[n * 8, H, W, 3]` each."""
        seconds = torch.from_numpy(pictures).unflatten(0, (-1, self.rate))
        return in_batches(self._run, seconds, _BATCH)

    def _run(self, seconds: Tensor) -> Tensor:
        pictures = normalised(seconds.flatten(0, 1), KINETICS).unflatten(0, (-1, self.rate))
        found: Tensor = self._network(pictures.transpose(1, 2))
        return found
