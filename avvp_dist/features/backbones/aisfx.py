"""aisfx (Ma and Lerch, ISMIR 2022; trained on sound effects): 512 numbers a second of sound."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from avvp_dist.features.backbones.backbone import package_missing
from avvp_dist.features.backbones.networks import in_batches, network_with, read_weights
from avvp_dist.features.backbones.weights import Weights
from avvp_dist.features.logmel import mel_bands, spectra

_WINDOW, _HOP, _BANDS = 2048, 1024, 96
_BLOCK = 100
"""Frames that the network reads at once; what a second lacks of them is silence."""
_LOUDEST = 9.457798957824707
"""The largest value in the spectrograms that it was trained with, by which all are divided."""
_BATCH = 32


class Aisfx:
    """The embedding of the package `aisfx`, on spectrograms as its paper computed them."""

    name = "aisfx"
    stream = "audio"
    dim = 512
    rate = 44100
    weights = Weights(
        sha256="499ea75909c932a2f94c35fa722fa4fabc5bcb7e84917209cc5f7402627b7eb5",
        address="https://pypi.org/project/aisfx/0.1.2",
        package="aisfx",
        file="models/checkpoint.pth",
        licence="weights: CC-BY-4.0; code: MIT",
    )

    def __init__(self, given: Mapping[str, str]) -> None:
        file = self.weights.find(self.name, given)
        try:
            from aisfx.models.cnn2d import EmbeddingNet
        except ImportError as error:
            raise package_missing(self.name, self.name, error) from None
        state, _ = read_weights(file)
        self._network = network_with(
            lambda: EmbeddingNet("max", 3, 1, 64), state, self.name, "embedding_net."
        )

    def features(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        return in_batches(self._network, torch.from_numpy(self.spectrograms(sound)), _BATCH)

    def spectrograms(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mel spectrograms `[n, 100, 96]` of seconds of sound, the first frame around its start."""
        frames = -(-sound.shape[1] // _HOP)
        room = (frames - 1) * _HOP + _WINDOW - _WINDOW // 2 - sound.shape[1]
        padded = np.pad(sound, ((0, 0), (_WINDOW // 2, max(0, room))))
        power = spectra(padded, _hann(), _HOP, _WINDOW)[:, :frames] ** 2
        scaled = np.log10(1 + 1e4 * (power @ _bands(self.rate))) / _LOUDEST
        return np.pad(scaled, ((0, 0), (0, _BLOCK - frames), (0, 0))).astype(np.float32)


@cache
def _hann() -> NDArray[np.float64]:
    return np.hanning(_WINDOW)


@cache
def _bands(rate: int) -> NDArray[np.float64]:
    """Bands over the whole spectrum, each of which sums to one."""
    weights = mel_bands(rate, _WINDOW, _BANDS, 0.0, rate / 2)
    return weights / weights.sum(0)
