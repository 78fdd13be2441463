"""Log-mel patches equal the published recipe, computed in other ways."""

from __future__ import annotations

import runpy
from importlib.util import find_spec
from math import cos, log, pi
from pathlib import Path

import numpy as np
import pytest

from avvp_dist.features.logmel import BANDS, FRAMES, RATE, SAMPLES, log_mel, mel_bands

RNG = np.random.default_rng(0)
TIMES = np.arange(RATE) / RATE
SOUNDS = {
    "noise": RNG.normal(size=RATE) * 0.2,
    "a tone": 0.5 * np.sin(2 * np.pi * 1000 * TIMES),
    "a sweep": 0.9 * np.sin(2 * np.pi * (100 + 3800 * TIMES) * TIMES),
    "clicks": (np.arange(RATE) % 777 == 0) * 1.0,
    "silence": np.zeros(RATE),
}


def published(sound: np.ndarray) -> np.ndarray:
    """The recipe of VGGish's authors, step by step: 25 ms, 10 ms, periodic Hann, 64 bands, 0.01."""
    window = np.array([0.5 - 0.5 * cos(2 * pi * n / 400) for n in range(400)])
    bins = np.arange(257)
    basis = np.exp(-2j * pi * np.outer(np.arange(400), bins) / 512)
    mels = 1127 * np.log(1 + bins * (16000 / 512) / 700)
    low, high = (1127 * log(1 + hertz / 700) for hertz in (125, 7500))
    edges = np.linspace(low, high, 66)
    bank = np.zeros((257, 64))
    for band in range(64):
        bank[:, band] = np.interp(mels, edges[band : band + 3], [0, 1, 0])
    frames = [sound[160 * n : 160 * n + 400] for n in range(1 + (len(sound) - 400) // 160)]
    return np.log(np.abs((np.stack(frames) * window) @ basis) @ bank + 0.01)[:96]


@pytest.mark.parametrize("kind", SOUNDS)
def test_a_patch_is_the_published_one(kind: str) -> None:
    sound = SOUNDS[kind]
    (found,) = log_mel(sound[None].astype(np.float32), 0.01)
    assert found.shape == (FRAMES, BANDS) == (96, 64) and found.dtype == np.float32
    assert np.abs(found - published(sound)).max() < 1e-4


def test_a_patch_reads_the_first_15600_samples() -> None:
    sound = np.stack([SOUNDS["noise"], SOUNDS["noise"]]).astype(np.float32)
    sound[1, SAMPLES:] = 1
    first, second = log_mel(sound, 0.01)
    assert SAMPLES == 15600 and np.array_equal(first, second)
    sound[1, SAMPLES - 20] = 1  # the window is small there, but not zero
    assert not np.array_equal(first, log_mel(sound, 0.01)[1])


@pytest.mark.parametrize("kind", SOUNDS)
def test_a_patch_is_that_of_torchvggish(kind: str) -> None:
    package = find_spec("torchvggish")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package torchvggish is not installed")
    # The file alone: the package asks for a resampler that nothing here needs.
    file = Path(package.submodule_search_locations[0]) / "mel_features.py"
    published = runpy.run_path(str(file))["log_mel_spectrogram"]
    reference = published(
        SOUNDS[kind][:SAMPLES],
        audio_sample_rate=RATE,
        log_offset=0.01,
        window_length_secs=0.025,
        hop_length_secs=0.010,
        num_mel_bins=BANDS,
        lower_edge_hertz=125,
        upper_edge_hertz=7500,
    )
    (found,) = log_mel(SOUNDS[kind][None].astype(np.float32), 0.01)
    assert np.abs(found - reference).max() < 1e-4


def test_the_bands_are_those_of_transformers() -> None:
    audio = pytest.importorskip("transformers.audio_utils", reason="no transformers installed")
    bank = audio.mel_filter_bank(
        num_frequency_bins=257,
        num_mel_filters=64,
        min_frequency=125.0,
        max_frequency=7500.0,
        sampling_rate=16000,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    assert np.abs(mel_bands(16000, 512, 64, 125.0, 7500.0) - bank).max() < 1e-9
    reference = audio.spectrogram(
        SOUNDS["noise"][:SAMPLES],
        audio.window_function(400, "hann"),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=1.0,
        center=False,
        mel_filters=bank,
        mel_floor=0.0,
    )
    found = log_mel(SOUNDS["noise"][None].astype(np.float32), 0.01)[0]
    assert np.abs(found - np.log(reference.T + 0.01)).max() < 1e-4
