"""Frames as the pictures that backbones read: which part, in which order, how smooth."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from avvp_dist.features.pictures import middle, squashed
from tests.features.frames import frame, gradient

FILTERS = {True: Image.Resampling.BILINEAR, False: Image.Resampling.BICUBIC}


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize(("width", "height"), [(320, 180), (90, 200), (48, 48)])
def test_a_frame_is_squashed(width: int, height: int, bilinear: bool) -> None:
    """Large ones are smoothed as Pillow does, small ones are enlarged."""
    image = gradient(width, height)
    found = squashed(frame(image), 64, 80, bilinear=bilinear)
    expected = np.asarray(Image.fromarray(image).resize((64, 80), FILTERS[bilinear]))
    assert found.shape == (80, 64, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).mean() < 3


@pytest.mark.parametrize(("width", "height"), [(320, 180), (90, 200), (48, 48)])
def test_the_middle_is_a_square(width: int, height: int) -> None:
    image = gradient(width, height)
    found = middle(frame(image), 56, 0.875).astype(float)
    assert found.shape == (56, 56, 3)
    part = min(width, height) * 0.875 / 2
    for channel, size in ((0, width), (1, height)):
        ends = 255 * (0.5 + np.array([-part, part]) / size)
        line = found[..., channel].mean(channel)  # red grows to the right, green downwards
        assert np.abs([line[0], line[-1]] - ends).max() < 5


def test_a_frame_of_a_pixel_has_a_middle() -> None:
    assert middle(frame(np.full((2, 2, 3), 90, np.uint8)), 8, 0.2).std() < 2


def test_the_channels_are_red_green_blue() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    image[..., 0], image[..., 2] = 200, 50
    for found in (squashed(frame(image), 8, 8), middle(frame(image), 8, 1.0)):
        assert np.abs(found.mean((0, 1)) - [200, 0, 50]).max() <= 2
