"""The network of `aisfx`, and the spectrograms that its paper computed with Essentia."""

from __future__ import annotations

import numpy as np

from avvp_dist.features.backbones.aisfx import Aisfx
from tests.features.backbones.conftest import needs, sounds
from tests.features.backbones.random_weights import check_rows


def test_seconds_of_sound_are_described() -> None:
    needs("aisfx")
    backbone = Aisfx({})
    check_rows(backbone.features, sounds(backbone.rate), 3, backbone.dim)


def frame_by_hand(sound: np.ndarray, number: int) -> np.ndarray:
    """A frame of 2,048 samples around its place, and bands whose weights sum to one."""
    place = np.arange(number * 1024 - 1024, number * 1024 + 1024)
    inside = (place >= 0) & (place < len(sound))
    samples = np.where(inside, sound[np.clip(place, 0, len(sound) - 1)], 0).astype(np.float64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2047)
    power = np.abs(np.fft.rfft(samples * window)) ** 2
    mels = 1127 * np.log(1 + np.arange(1025) * 44100 / 2048 / 700)
    edges = np.linspace(0, mels[-1], 98)
    found = np.zeros(96)
    for band in range(96):
        left, centre, right = edges[band : band + 3]
        weights = np.interp(mels, [left, centre, right], [0, 1, 0])
        found[band] = power @ weights / weights.sum()
    return np.log10(1 + 10000 * found) / 9.457798957824707


def test_spectrograms_are_those_of_the_paper() -> None:
    backbone = Aisfx.__new__(Aisfx)  # its spectrograms need no package
    rows = sounds(44100)
    found = backbone.spectrograms(rows)
    assert found.shape == (3, 100, 96) and found.dtype == np.float32
    assert not found[:, 44:].any() and found[2, :44].all()
    for number in (0, 1, 20, 43):
        assert np.allclose(found[2, number], frame_by_hand(rows[2], number), atol=1e-5)
