"""A file described by several backbones at once, each at its own rates, of one decoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.features.description import Description, describe
from avvp_dist.features.media import Bounds
from tests.features.made import SECONDS, make


class Eye:
    """The light of each picture, and of its upper left corner."""

    dim = 2

    def __init__(self, stream: str, rate: int, size: tuple[int, int], joint: bool = False) -> None:
        self.stream, self.rate, self._size, self._joint = stream, rate, size, joint

    def picture(self, frame: Any) -> np.ndarray:
        return np.asarray(frame.reformat(*self._size, "rgb24").to_ndarray())

    def features(self, pictures: np.ndarray) -> np.ndarray:
        assert pictures.shape[1:] == (self._size[1], self._size[0], 3)
        rows = np.stack([pictures.mean((1, 2, 3)), pictures[:, 0, 0].mean(-1)], 1)
        rows = rows.reshape(-1, self.rate, 2).max(1) if self._joint else rows
        return 1 + rows.astype(np.float32)


class Ear:
    """The loudness of a second, and how much of it is loud."""

    dim = 2

    def __init__(self, stream: str, rate: int) -> None:
        self.stream, self.rate = stream, rate

    def features(self, sound: np.ndarray) -> np.ndarray:
        assert sound.shape[1] == self.rate
        loud = np.abs(sound) > 0.05
        return np.stack([np.abs(sound).mean(1), loud.mean(1)], 1).astype(np.float32)


EYES = [
    Eye("a", 8, (32, 24)),
    Eye("b", 2, (16, 16)),
    Eye("c", 8, (12, 20), joint=True),
    Eye("d", 3, (8, 8)),
]
EARS = [Ear("e", 48000), Ear("f", 16000), Ear("g", 16000)]


def described(file: Path, *backbones: Any) -> Description:
    return describe(file, "clip", backbones, Bounds())


CASES: dict[str, Callable[[Path], Path]] = {
    "a video": lambda path: make(path / "a.mp4", length=18, fps=10, seconds=(1, 4, 17)),
    "odd pictures and late sound": lambda path: make(
        path / "a.mkv", length=6.4, fps=30, every=7, sound_from=1.2, channels=2
    ),
    "late pictures": lambda path: make(path / "a.mp4", length=4, picture_from=2.2),
    "no sound": lambda path: make(path / "a.mp4", length=3, sound=False),
    "no pictures": lambda path: make(path / "a.wav", length=3, pictures=False),
}


@pytest.mark.parametrize("case", CASES)
def test_together_they_say_what_each_says_alone(case: str, tmp_path: Path) -> None:
    file = CASES[case](tmp_path)
    together = described(file, *EYES, *EARS)
    for eye, ear in zip(EYES, [*EARS, EARS[0]], strict=True):
        alone = described(file, eye, ear)
        for stream in (eye.stream, ear.stream):
            assert np.array_equal(together.streams[stream], alone.streams[stream]), stream
        assert together.counts == alone.counts  # the file was decoded once


def test_each_sees_and_hears_the_events(tmp_path: Path) -> None:
    made = described(make(tmp_path / "a.mp4"), *EYES, *EARS)
    assert made.seconds == 10 and made.empty == []
    for stream, rows in made.streams.items():
        if stream != "b":  # two pictures a second miss a flash of 0.2 s
            assert np.flatnonzero(rows[:, 0] > rows[:, 0].min() * 2 + 0.01).tolist() == [*SECONDS]


def test_streams_of_which_there_is_nothing_are_named(tmp_path: Path) -> None:
    made = described(make(tmp_path / "a.mp4", sound=False, length=3), EYES[0], *EARS)
    assert made.empty == ["e", "f", "g"] and made.streams["e"].shape == (3, 2)
