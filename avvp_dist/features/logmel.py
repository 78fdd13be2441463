"""Log-mel spectrograms as VGGish and YAMNet read them (Hershey et al., ICASSP 2017).

16 kHz, windows of 25 ms every 10 ms, magnitudes of a 512-point FFT, 64 triangular bands from 125
to 7,500 Hz that are even on HTK's mel scale.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

RATE = 16000
SAMPLES = 15600
"""Samples of a patch: 96 windows."""
FRAMES, BANDS = 96, 64
_WINDOW, _HOP, _FFT = 400, 160, 512
_LOWEST, _HIGHEST = 125.0, 7500.0


def log_mel(sound: NDArray[np.float32], offset: float) -> NDArray[np.float32]:
    """Log-mel patches of the first 0.975 s of each second.

    Args:
        sound: `[n, samples]` at 16 kHz, in [-1, 1], of at least 15,600 samples.
        offset: is added before the logarithm: 0.01 for VGGish, 0.001 for YAMNet.

    Returns:
        `[n, 96, 64]`.
    """
    magnitudes = spectra(sound[:, :SAMPLES], _hann(), _HOP, _FFT)
    return np.log(magnitudes @ _bands() + offset).astype(np.float32)


def spectra(
    sound: NDArray[np.float32], window: NDArray[np.float64], hop: int, fft: int
) -> NDArray[np.float64]:
    """Magnitudes `[n, frames, fft / 2 + 1]` of whole windows of sounds `[n, samples]`."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, len(window), axis=1)
    return np.abs(np.fft.rfft(frames[:, ::hop] * window, fft))


def mel_bands(
    rate: int, fft: int, bands: int, lowest: float, highest: float
) -> NDArray[np.float64]:
    """Weights `[fft / 2 + 1, bands]`: triangles of height one, even on HTK's mel scale.

    Args:
        rate: samples a second.
        fft: points of the FFT.
        lowest: frequency in Hz at which the first band begins.
        highest: frequency in Hz at which the last band ends.
    """
    bins = _mel(np.linspace(0, rate / 2, fft // 2 + 1))
    edges = np.linspace(_mel(np.array(lowest)), _mel(np.array(highest)), bands + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - left) / (centre - left)
    falling = (right - bins[:, None]) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling))


@cache
def _hann() -> NDArray[np.float64]:
    """The periodic window, which is one sample short of a symmetric one."""
    return np.hanning(_WINDOW + 1)[:-1]


@cache
def _bands() -> NDArray[np.float64]:
    return mel_bands(RATE, _FFT, BANDS, _LOWEST, _HIGHEST)


def _mel(hertz: NDArray[np.floating]) -> NDArray[np.floating]:
    return 1127 * np.log1p(hertz / 700)
