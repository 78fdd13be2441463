"""A file described by several backbones at once, each at its own rates, of one decoding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.features.description import Decoding, Description, describe, described
from avvp_dist.features.media import Bounds, MediaError
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


def described_alone(file: Path, *backbones: Any) -> Description:
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
    together = described_alone(file, *EYES, *EARS)
    for eye, ear in zip(EYES, [*EARS, EARS[0]], strict=True):
        alone = described_alone(file, eye, ear)
        for stream in (eye.stream, ear.stream):
            assert np.array_equal(together.streams[stream], alone.streams[stream]), stream
        assert together.counts == alone.counts  # the file was decoded once


def test_each_sees_and_hears_the_events(tmp_path: Path) -> None:
    made = described_alone(make(tmp_path / "a.mp4"), *EYES, *EARS)
    assert made.seconds == 10 and made.empty == []
    for stream, rows in made.streams.items():
        if stream != "b":  # two pictures a second miss a flash of 0.2 s
            assert np.flatnonzero(rows[:, 0] > rows[:, 0].min() * 2 + 0.01).tolist() == [*SECONDS]


def test_streams_of_which_there_is_nothing_are_named(tmp_path: Path) -> None:
    made = described_alone(make(tmp_path / "a.mp4", sound=False, length=3), EYES[0], *EARS)
    assert made.empty == ["e", "f", "g"] and made.streams["e"].shape == (3, 2)


@pytest.mark.parametrize(("threads", "batch"), [(0, 16), (1, 3), (3, 7)])
def test_several_files_are_described_as_each_is_alone(
    threads: int, batch: int, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    whole = make(tmp_path / "cut.mkv", length=9).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    files = [make(tmp_path / f"{n}.mp4", length=n, fps=8) for n in (5, 12, 1)]
    files[1:1] = [broken, tmp_path / "cut.mkv"]
    backbones: Any = [EYES[0], EARS[0]]
    decodings = [Decoding(partial(Path, f), f.name, backbones, Bounds()) for f in files]
    made = list(described(decodings, backbones, threads=threads, batch=batch))
    assert [isinstance(one, MediaError) for one in made] == [False, True, True, False, False]
    for file, one in zip(files, made, strict=True):
        if isinstance(one, Description):
            alone = described_alone(file, *backbones)
            assert one.counts == alone.counts and one.compute_seconds > 0 < one.decode_seconds
            for stream, rows in one.streams.items():
                assert np.array_equal(rows, alone.streams[stream])
