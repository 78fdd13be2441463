"""Decoded frames as the pictures that backbones read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av import VideoFrame


def middle(
    frame: VideoFrame, side: int, fraction: float, *, bilinear: bool = False
) -> NDArray[np.uint8]:
    """The middle square of a frame, RGB `[side, side, 3]`.

    Args:
        fraction: length of the square, of the frame's shorter side: 224 / 256 is what a crop of 224
            pixels takes of a picture whose shorter side was scaled to 256.
        bilinear: scale with a triangular filter, not with a bicubic one.
    """
    import av

    rgb = frame.to_ndarray(format="rgb24")
    length = max(1, round(min(rgb.shape[:2]) * fraction))
    top, left = ((whole - length) // 2 for whole in rgb.shape[:2])
    cut = np.ascontiguousarray(rgb[top : top + length, left : left + length])
    return squashed(av.VideoFrame.from_ndarray(cut, "rgb24"), side, side, bilinear=bilinear)


def squashed(
    frame: VideoFrame, width: int, height: int, *, bilinear: bool = False
) -> NDArray[np.uint8]:
    """RGB `[height, width, 3]`, whatever the shape of the frame."""
    from av.video.reformatter import Interpolation

    filter = Interpolation.BILINEAR if bilinear else Interpolation.BICUBIC
    scaled = frame.reformat(width, height, "rgb24", interpolation=filter)
    return np.asarray(scaled.to_ndarray())
