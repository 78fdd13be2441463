"""CLIP's vision network with random weights, with one layer of its 24."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avvp_dist.features.backbones.clip import Clip
from tests.features.backbones.random_weights import check_rows, give, random_state
from tests.features.frames import frame, gradient


def network(transformers: Any, layers: int) -> torch.nn.Module:
    config = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=768,
    )
    return transformers.CLIPVisionModelWithProjection(config)


def test_the_size_is_that_of_vit_l_14(transformers: Any) -> None:
    with torch.device("meta"):
        count = sum(one.numel() for one in network(transformers, Clip.layers).parameters())
    assert count == 303_966_208  # with the projection to 768


def test_pictures_are_described(
    transformers: Any, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Clip, "layers", 1)
    state = random_state(lambda: network(transformers, 1))
    state["logit_scale"] = torch.ones(())
    backbone = Clip(give(monkeypatch, Clip, state, tmp_path / "model.safetensors"))
    check_rows(backbone.features, pictures[:2], 2, 768)


def test_a_picture_is_the_middle_as_clip_scales_it() -> None:
    """Pictures equal those of Pillow's bicubic filter to a few levels, in RGB."""
    from PIL import Image

    image = gradient(320, 240)
    found = Clip.picture(Clip.__new__(Clip), frame(image))
    scaled = Image.fromarray(image).resize((299, 224), Image.Resampling.BICUBIC)
    expected = np.asarray(scaled)[:, 37 : 37 + 224]
    assert found.shape == (224, 224, 3)
    assert np.abs(found.astype(int) - expected).mean() < 2
