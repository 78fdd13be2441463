"""R(2+1)D-18 of torchvision with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.features.backbones.r2plus1d import R2Plus1D18
from tests.features.backbones.random_weights import check_rows, give, random_state, settle
from tests.features.frames import frame, gradient


def test_eight_pictures_are_one_row(
    torchvision: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = random_state(torchvision.models.video.r2plus1d_18)
    backbone = R2Plus1D18(give(monkeypatch, R2Plus1D18, state, tmp_path / "net.pth"))
    assert torchvision.models.video.R2Plus1D_18_Weights.DEFAULT.url == R2Plus1D18.weights.address
    settle(backbone)
    pictures = np.random.default_rng(0).integers(0, 256, (16, 48, 48, 3), np.uint8)
    found = check_rows(backbone.features, pictures, 2, 512)
    shuffled = pictures[[7, 2, 5, 0, 3, 6, 1, 4]]
    assert not np.allclose(backbone.features(shuffled), found[0], rtol=1e-3)


def test_a_picture_is_squashed_as_han_did() -> None:
    from PIL import Image

    image = gradient(320, 180)
    found = R2Plus1D18.picture(R2Plus1D18.__new__(R2Plus1D18), frame(image))
    expected = np.asarray(Image.fromarray(image).resize((112, 112), Image.Resampling.BILINEAR))
    assert found.shape == (112, 112, 3)
    assert np.abs(found.astype(int) - expected).mean() < 1.5
