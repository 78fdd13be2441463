"""VGGish (Hershey et al., ICASSP 2017; trained on YouTube-8M): 128 numbers a second of sound.

Until 2020 TensorFlow's release had a ReLU after its last layer, which the layer was not trained
with. HAN's features of 2020 have passed it: none is negative, half of them are zero. Those that
AudioSet publishes are made of the layer's own output.

HAN's sound was resampled without a filter. So the features of `vggish` are close to HAN's, never
equal.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from avvp_dist.features.backbones.networks import in_batches, network_with, read_weights
from avvp_dist.features.backbones.weights import Weights
from avvp_dist.features.logmel import BANDS, FRAMES, RATE, log_mel

_RELEASE = "https://github.com/harritaylor/torchvggish/releases/download/v0.1"
_NETWORK_SHA256 = "10086976245803799d9194e9a73d9b6c1549c71d1b80106f5cade5608a561f4b"
_OFFSET = 0.01
_CHANNELS = (64, 128, 256, 256, 512, 512)
_POOLED = (0, 1, 3, 5)
"""Convolutions that a pooling follows."""
_WIDTH, _DIM, _BATCH = 4096, 128, 32
_CLIPPED = 2.0
"""Whitened features are clipped to ± this before they become 8 bit."""


class _Network(nn.Module):
    """Layers named as in the weights of torchvggish."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip((1, *_CHANNELS), _CHANNELS, strict=False)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if number in _POOLED else []
        self.features = nn.Sequential(*layers)
        flat = _CHANNELS[-1] * (FRAMES // 2 ** len(_POOLED)) * (BANDS // 2 ** len(_POOLED))
        sizes = ((flat, _WIDTH), (_WIDTH, _WIDTH), (_WIDTH, _DIM))
        linear = [layer for size in sizes for layer in (nn.Linear(*size), nn.ReLU())]
        self.embeddings = nn.Sequential(*linear[:-1])

    def forward(self, patches: Tensor) -> Tensor:
        """Output `[n, 128]` of the last layer for patches `[n, 96, 64]`."""
        maps = self.features(patches[:, None])
        # The order in which TensorFlow, where it was trained, flattens: time, frequency, channel.
        embedded: Tensor = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))
        return embedded


class Vggish:
    """The embedding after a ReLU, as HAN's features are: none is negative."""

    name = "vggish"
    stream = "audio"
    dim = _DIM
    rate = RATE
    weights = Weights(
        sha256=_NETWORK_SHA256,
        address=f"{_RELEASE}/vggish-10086976.pth",
        licence="Apache-2.0",
    )

    def __init__(self, given: Mapping[str, str]) -> None:
        file = self.weights.find(self.name, given)
        self._network = network_with(_Network, read_weights(file), self.name)

    def features(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.maximum(self.embeddings(sound), 0)

    def embeddings(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        """Output `[n, 128]` of the network for seconds of sound."""
        return in_batches(self._network, torch.from_numpy(log_mel(sound, _OFFSET)), _BATCH)


class VggishAudioset(Vggish):
    """The embedding as AudioSet publishes it: whitened by its PCA and rounded to 8 bit.

    Values are those of the 256 levels in [-2, 2], by YouTube-8M's rule for turning them back.
    """

    name = "vggish-audioset"
    weights = Weights(
        sha256=_NETWORK_SHA256,
        address=f"{_RELEASE}/vggish-10086976.pth",
        licence="Apache-2.0",
        more=(
            (
                "vggish-pca",
                Weights(
                    sha256="970ea276",
                    address=f"{_RELEASE}/vggish_pca_params-970ea276.pth",
                    licence="Apache-2.0",
                ),
            ),
        ),
    )

    def __init__(self, given: Mapping[str, str]) -> None:
        super().__init__(given)
        ((key, pca),) = self.weights.more
        parameters = read_weights(pca.find(key, given))
        self._directions = np.asarray(parameters["pca_eigen_vectors"], np.float64)
        self._means = np.asarray(parameters["pca_means"], np.float64).reshape(-1)

    def features(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        whitened = (self.embeddings(sound) - self._means) @ self._directions.T
        return restored(quantised(whitened))


def quantised(whitened: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Whitened features as AudioSet stores them: 256 levels from -2 to 2, cut off, not rounded."""
    clipped = np.clip(whitened, -_CLIPPED, _CLIPPED)
    return ((clipped + _CLIPPED) * (255 / (2 * _CLIPPED))).astype(np.uint8)


def restored(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features of their levels. The half step makes up for the cutting off."""
    return (levels * (4 / 255) + (4 / 512 - 2)).astype(np.float32)
