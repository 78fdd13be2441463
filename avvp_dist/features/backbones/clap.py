"""CLAP (Wu et al., ICASSP 2023; HTSAT-tiny without fusion): 512 numbers a second of sound."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.features.backbones.backbone import package_missing
from avvp_dist.features.backbones.networks import in_batches, read_weights, transformer_with
from avvp_dist.features.backbones.weights import Weights

_BATCH = 16


class Clap:
    """The audio half of `laion/clap-htsat-unfused`: embeddings of length one.

    CLAP reads ten seconds. A second is repeated ten times, as it repeats all shorter sounds.
    """

    name = "clap"
    stream = "audio"
    dim = 512
    rate = 48000
    weights = Weights(
        sha256="1cd3c601bc4afe0fa87be3de4c13dd2cfadd249fac1e29acf74a9b296c3219bb",
        address="https://huggingface.co/laion/clap-htsat-unfused/resolve/"
        "8fa0f1c6d0433df6e97c127f64b2a1d6c0dcda8a/pytorch_model.bin",
        licence="Apache-2.0",
    )

    def __init__(self, given: Mapping[str, str]) -> None:
        file = self.weights.find(self.name, given)
        try:
            from transformers import (
                ClapAudioConfig,
                ClapAudioModelWithProjection,
                ClapFeatureExtractor,
            )
        except (ImportError, RuntimeError) as error:
            raise package_missing(self.name, "transformers", error) from None
        # The values of the model's own preprocessor_config.json; its audio config is the default.
        self._extractor = ClapFeatureExtractor(
            frequency_min=50, frequency_max=14000, truncation="rand_trunc", padding="repeatpad"
        )
        self._network = transformer_with(
            ClapAudioModelWithProjection, ClapAudioConfig(), read_weights(file), self.name
        )

    def features(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        return in_batches(self._run, torch.from_numpy(sound), _BATCH)

    def _run(self, sound: Tensor) -> Tensor:
        read = self._extractor(
            list(sound.cpu().numpy()), sampling_rate=self.rate, return_tensors="pt"
        )
        found = self._network(
            input_features=read["input_features"].to(sound.device),
            is_longer=read["is_longer"].to(sound.device),
        )
        return torch.nn.functional.normalize(found.audio_embeds, dim=-1)
