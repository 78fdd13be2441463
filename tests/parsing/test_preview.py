"""Previews: what a page plays is on the clip's clock, small, and complete."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import av
import pytest
from matplotlib.image import imread

from avvp_dist.features.decoding import seconds_of
from avvp_dist.features.media import Bounds
from avvp_dist.parsing.preview import preview
from tests.features.made import SECONDS, beeps, flashes, make


def played(player: bytes) -> tuple[list[int], list[int]]:
    """Seconds of the flashes and of the beeps in a player's file."""
    resize = [(8, lambda frame: frame.reformat(48, 32, "rgb24").to_ndarray())]
    seconds = list(seconds_of(player, "player", Bounds(), pictures=resize, sound=[16000]))
    return flashes(seconds), beeps(seconds)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("plain.mp4", {}),
        ("start.ts", {"start": 5.0}),
        ("late_pictures.mkv", {"picture_from": 1.2}),
        ("late_sound.mkv", {"sound_from": 1.2}),
        ("few.mp4", {"every": 5, "fps": 30}),
    ],
)
def test_flashes_and_beeps_are_played_in_their_seconds(
    name: str, how: dict[str, Any], tmp_path: Path
) -> None:
    media = preview(make(tmp_path / name, **how), name, 10, Bounds(), 64)
    assert played(media.player) == ([*SECONDS], [*SECONDS])
    assert media.player_type == "video/mp4"
    assert b"moov" in media.player[:100]  # in front of the data


@pytest.mark.parametrize(
    ("stored", "aspect", "shown"),
    [((720, 1280), 1, (360, 640)), ((180, 320), 2, (360, 320)), ((180, 640), 2, (360, 640))],
)
def test_a_large_picture_becomes_small_and_keeps_its_shape(
    stored: tuple[int, int], aspect: int, shown: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "large.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = *stored, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame(*stored, "yuv420p")))
        container.mux(stream.encode(None))
    with av.open(BytesIO(preview(path, "large", 2, Bounds(), 64).player)) as container:
        (stream,) = container.streams.video
        assert (stream.width, stream.height) == shown


def test_thumbnails_and_the_spectrogram_are_pictures_of_the_whole_clip(tmp_path: Path) -> None:
    media = preview(make(tmp_path / "a.mp4"), "a", 10, Bounds(), 64)
    light = [imread(BytesIO(image), "jpg").mean() for image in media.thumbnails]
    assert [number for number, value in enumerate(light) if value > 100] == [*SECONDS]
    mel = imread(BytesIO(media.log_mel), "png")[..., :3].sum(-1)
    assert mel.shape == (64, 960)
    loud = mel.max(0).reshape(10, 96).max(1)
    assert [number for number, value in enumerate(loud) if value > 1.5] == [*SECONDS]


def test_sound_alone_is_played_as_sound(tmp_path: Path) -> None:
    media = preview(make(tmp_path / "a.wav", pictures=False), "a", 10, Bounds(), 64)
    assert media.player_type == "audio/mp4" and media.thumbnails == ()
    (sound,) = av.open(BytesIO(media.player)).streams.audio
    assert sound.codec_context.name == "aac"


def test_a_mute_video_has_no_spectrogram(tmp_path: Path) -> None:
    media = preview(make(tmp_path / "a.mp4", sound=False), "a", 10, Bounds(), 64)
    assert media.log_mel == b"" and len(media.thumbnails) == 10


def test_a_player_that_is_too_large_is_left_out(tmp_path: Path) -> None:
    media = preview(make(tmp_path / "a.mp4"), "a", 10, Bounds(), 0.001)
    assert media.player == b"" and len(media.thumbnails) == 10
