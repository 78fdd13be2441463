"""ResNet-152 of torchvision with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avvp_dist.features.backbones.resnet152 import ResNet152
from tests.features.backbones.random_weights import check_rows, give, random_state, settle
from tests.features.frames import frame, gradient


def test_pictures_are_described(
    torchvision: Any, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = random_state(torchvision.models.resnet152)
    state = {name: one / 4 if "conv3" in name else one for name, one in state.items()}
    backbone = ResNet152(give(monkeypatch, ResNet152, state, tmp_path / "net.pth"))
    settle(backbone)
    small = np.ascontiguousarray(pictures[:2, :96, :96])  # it pools over whatever size there is
    check_rows(backbone.features, small, 2, 2048)


def test_a_picture_is_the_one_of_torchvision(torchvision: Any) -> None:
    """Its own preprocessing, before the normalisation: RGB, shorter side 256, the middle 224."""
    from PIL import Image

    image = gradient(640, 512)
    found = ResNet152.picture(ResNet152.__new__(ResNet152), frame(image))
    preset = torchvision.models.ResNet152_Weights.IMAGENET1K_V1.transforms(
        mean=[0] * 3, std=[1] * 3
    )
    expected = (preset(Image.fromarray(image)) * 255).permute(1, 2, 0).numpy()
    assert found.shape == (224, 224, 3)
    assert np.abs(found - expected).mean() < 1.5


def test_the_weights_are_those_that_the_pictures_are_for(torchvision: Any) -> None:
    weights = torchvision.models.ResNet152_Weights.IMAGENET1K_V1
    assert weights.url == ResNet152.weights.address
    assert torch.equal(torch.tensor(weights.transforms().resize_size), torch.tensor([256]))
