"""Small media files for the tests: a flash and a beep from k + 0.4 to k + 0.6 s in some seconds."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from avvp_dist.features.decoding import Second

SECONDS = (1, 4, 8)
WIDTH, HEIGHT, SAMPLES = 96, 64, 16000
VIDEO = {".webm": "libvpx-vp9", ".gif": "gif", ".avi": "mpeg4"}
AUDIO = {".webm": "libopus", ".avi": "mp3", ".wav": "pcm_s16le", ".flac": "flac", ".mp3": "mp3"}


def on(time: float, seconds: Sequence[int]) -> bool:
    """Whether a flash and a beep are to be seen and heard."""
    return int(time) in seconds and 0.4 <= time % 1 < 0.6


def flashes(seconds: list[Second]) -> list[int]:
    """Seconds in which a flash is seen."""
    return [
        number
        for number, one in enumerate(seconds)
        if one.pictures and max(picture.mean() for picture in one.pictures) > 100
    ]


def beeps(seconds: list[Second]) -> list[int]:
    """Seconds in which a beep is heard."""
    return [
        number
        for number, one in enumerate(seconds)
        if one.sound is not None and np.abs(one.sound).max() > 0.1
    ]


def make(
    path: Path,
    *,
    length: float = 10.0,
    fps: int = 25,
    seconds: Sequence[int] = SECONDS,
    picture_from: float = 0.0,
    sound_from: float = 0.0,
    start: float = 0.0,
    b_frames: int = 0,
    every: int = 1,
    channels: int = 1,
    pictures: bool = True,
    sound: bool = True,
) -> Path:
    """Write a file whose ending says its format.

    Args:
        picture_from: second at which the pictures begin.
        sound_from: second at which the sound begins.
        start: seconds that all time stamps are later.
        every: between seconds 2 and 6, only each such picture is kept.
    """
    with av.open(str(path), "w") as container:
        streams: list[Any] = []
        if pictures:
            streams.append(_video(container, path.suffix, fps, b_frames))
        if sound:
            streams.append(_audio(container, path.suffix, channels))
        packets = []
        if pictures:
            packets += _pictures(streams[0], length, fps, seconds, picture_from, start, every)
        if sound:
            packets += _sound(streams[-1], length, seconds, sound_from, start, channels)
        for packet in sorted(packets, key=lambda one: float((one.dts or 0) * one.time_base)):
            container.mux(packet)
    return path


def _video(container: Any, suffix: str, fps: int, b_frames: int) -> Any:
    stream = container.add_stream(VIDEO.get(suffix, "libx264"), rate=fps)
    stream.width, stream.height = WIDTH, HEIGHT
    stream.pix_fmt = "rgb8" if suffix == ".gif" else "yuv420p"
    if suffix not in VIDEO:
        stream.codec_context.max_b_frames = b_frames
        stream.options = {"preset": "veryfast", "b-adapt": "0"}
    return stream


def _audio(container: Any, suffix: str, channels: int) -> Any:
    rate = 48000 if suffix == ".webm" else SAMPLES
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    return container.add_stream(AUDIO.get(suffix, "aac"), rate=rate, layout=layout)


def _pictures(
    stream: Any,
    length: float,
    fps: int,
    seconds: Sequence[int],
    first: float,
    start: float,
    every: int,
) -> list[Any]:
    packets = []
    for number in range(round(first * fps), round(length * fps)):
        time = number / fps
        if 2 <= time < 6 and number % every:
            continue
        value = 255 if on(time, seconds) else 0
        image = np.full((HEIGHT, WIDTH, 3), value, np.uint8)
        frame = av.VideoFrame.from_ndarray(image, "rgb24")
        frame.pts, frame.time_base = number + round(start * fps), Fraction(1, fps)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _sound(
    stream: Any,
    length: float,
    seconds: Sequence[int],
    first: float,
    start: float,
    channels: int,
) -> list[Any]:
    rate = stream.codec_context.sample_rate
    times = np.arange(round(first * rate), round(length * rate)) / rate
    heard = np.array([on(time, seconds) for time in times])
    wave = (0.6 * np.sin(2 * np.pi * 1000 * times) * heard).astype(np.float32)
    context, packets = stream.codec_context, []
    context.open()
    converter = av.AudioResampler(context.format, context.layout, rate)
    size = context.frame_size or 1024
    for at in range(0, len(wave), size):
        part = np.repeat(wave[None, at : at + size], channels, 0)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), "fltp", context.layout.name)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = round((first + start) * rate) + at
        for converted in converter.resample(frame):
            packets += stream.encode(converted)
    return packets + stream.encode(None)
