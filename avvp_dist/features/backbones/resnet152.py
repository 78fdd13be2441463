"""ResNet-152 (He et al., CVPR 2016; trained on ImageNet): 2,048 numbers a picture, eight a second.

The pictures and the weights are those of HAN's features `res152`, averaged over each second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.features.backbones.backbone import package_missing
from avvp_dist.features.backbones.networks import (
    IMAGENET,
    in_batches,
    network_with,
    normalised,
    read_weights,
    without_classifier,
)
from avvp_dist.features.backbones.weights import Weights
from avvp_dist.features.pictures import middle

if TYPE_CHECKING:
    from av import VideoFrame

_SIDE, _SHORTER_SIDE, _BATCH = 224, 256, 16


class ResNet152:
    """The model of torchvision without its classifier, with its first ImageNet weights."""

    name = "resnet152"
    stream = "visual"
    dim = 2048
    rate = 8
    weights = Weights(
        sha256="394f9c45",
        address="https://download.pytorch.org/models/resnet152-394f9c45.pth",
        licence="BSD-3-Clause; trained on ImageNet",
    )

    def __init__(self, given: Mapping[str, str]) -> None:
        file = self.weights.find(self.name, given)
        try:
            from torchvision.models import resnet152
        except (ImportError, RuntimeError) as error:
            raise package_missing(self.name, "torchvision", error) from None
        weights = read_weights(file)
        self._network = network_with(without_classifier(resnet152), weights, self.name)

    def picture(self, frame: VideoFrame) -> NDArray[np.uint8]:
        return middle(frame, _SIDE, _SIDE / _SHORTER_SIDE, bilinear=True)

    def features(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        return in_batches(self._run, torch.from_numpy(pictures), _BATCH)

    def _run(self, pictures: Tensor) -> Tensor:
        found: Tensor = self._network(normalised(pictures, IMAGENET))
        return found
