"""CLIP ViT-L/14 (Radford et al., ICML 2021): 768 numbers a picture, two pictures a second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.features.backbones.backbone import package_missing
from avvp_dist.features.backbones.networks import (
    CLIP,
    in_batches,
    normalised,
    read_weights,
    transformer_with,
)
from avvp_dist.features.backbones.weights import Weights
from avvp_dist.features.pictures import middle

if TYPE_CHECKING:
    from av import VideoFrame

_SIDE, _BATCH = 224, 16


class Clip:
    """The visual half of `openai/clip-vit-large-patch14`: embeddings that are not normalised."""

    name = "clip"
    stream = "visual"
    dim = 768
    rate = 2
    layers: ClassVar[int] = 24
    weights = Weights(
        sha256="a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        address="https://huggingface.co/openai/clip-vit-large-patch14/resolve/"
        "32bd64288804d66eefd0ccbe215aa642df71cc41/model.safetensors",
        licence="MIT",
    )

    def __init__(self, given: Mapping[str, str]) -> None:
        file = self.weights.find(self.name, given)
        try:
            from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
        except (ImportError, RuntimeError) as error:
            raise package_missing(self.name, "transformers", error) from None
        config = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=self.layers,
            num_attention_heads=16,
            patch_size=14,
            image_size=_SIDE,
            projection_dim=self.dim,
        )
        self._network = transformer_with(
            CLIPVisionModelWithProjection, config, read_weights(file), self.name
        )

    def picture(self, frame: VideoFrame) -> NDArray[np.uint8]:
        return middle(frame, _SIDE, 1.0)

    def features(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        return in_batches(self._run, torch.from_numpy(pictures), _BATCH)

    def _run(self, pictures: Tensor) -> Tensor:
        embedded: Tensor = self._network(pixel_values=normalised(pictures, CLIP)).image_embeds
        return embedded
