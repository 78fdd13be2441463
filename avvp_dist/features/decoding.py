"""Pictures and sound of a media file, second by second, on the clip's own clock.

The clock begins with the first of the chosen streams. Second k is [k, k + 1). Files are read in
order, once for the pictures and once for the sound, so that streams that are not interleaved cost
no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import tee
from math import ceil, floor, inf
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.features.media import (
    Bounds,
    FilePair,
    MediaError,
    MediaFile,
    Reason,
    SingleFile,
    Stopwatch,
    check_pixels,
    opened,
    too_long,
)

if TYPE_CHECKING:
    from av import AudioFrame, VideoFrame
    from av.container import InputContainer

Picture = NDArray[np.uint8]
"""RGB `[H, W, 3]`."""
Resize = Callable[["VideoFrame"], Picture]
"""Makes the picture that a backbone reads of a decoded frame, which it may crop and scale."""
View = tuple[int, Resize]
"""Number of pictures a second, and what makes them of frames."""

_GAP = 0.02
"""Seconds from which the time stamps of sound are a gap and not rounded."""


@dataclass(frozen=True)
class Second:
    """Pictures and sound of a second of a clip."""

    views: list[list[Picture]] | None
    """For each view, the picture shown at (i + 1/2) / rate for each i; None if none is shown."""
    sounds: list[NDArray[np.float32] | None]
    """Samples `[rate]` at each rate, the mean of all channels; None if it holds none."""

    @property
    def pictures(self) -> list[Picture] | None:
        """Pictures of the first view."""
        return self.views[0] if self.views else None

    @property
    def sound(self) -> NDArray[np.float32] | None:
        """Samples at the first rate."""
        return self.sounds[0] if self.sounds else None


@dataclass
class Counts:
    """Anomalies and frames that the decoding of a file met."""

    frames: int = 0
    packet_errors: int = 0


def seconds_of(
    file: MediaFile,
    name: str,
    bounds: Bounds,
    *,
    pictures: Sequence[View] = (),
    sound: Sequence[int] = (),
    counts: Counts | None = None,
    span: tuple[float, float] | None = None,
) -> Iterator[Second]:
    """Decode a file: N seconds, where N is its length in seconds, rounded half up.

    Everything before a span is decoded too, because a decoder that starts in the middle of a file
    gives other values.

    Args:
        name: of the file, for errors.
        pictures: views, all of which are made of the frames of one decoding.
        sound: rates in samples a second, all made of one decoding.
        counts: is filled while seconds are read.
        span: start and end of the part that is wanted, in seconds of the clip's clock. Second 0
            begins with it. None: the whole file.

    Raises:
        MediaError: for a file that cannot be read within `bounds`.
    """
    files = (file.pictures, file.sound) if isinstance(file, FilePair) else (file,)
    stopwatch = Stopwatch(name, bounds)
    how = name, bounds, stopwatch, counts or Counts(), *(span or (0.0, inf))
    readings = [_Reading(one, *how) for one in files]
    tracks: list[_Pictures | _Sound] = [_Pictures(readings[0], pictures)] if pictures else []
    frames = tee(readings[-1].frames("audio"), len(sound))
    tracks += [_Sound(readings[-1], *pair) for pair in zip(sound, frames, strict=True)]
    held: Second | None = None
    number = 0
    running = [iter(track) for track in tracks]
    while True:
        with stopwatch.running():
            found = [next(track, _END) for track in running]
        if all(one is _END for one in found):
            break
        parts: list[Any] = [None if one is _END else one for one in found]
        if held is not None:
            yield held
        held = Second(parts.pop(0) if pictures else None, parts)
        number += 1
    for reading in readings:
        reading.check_length([track.end for track in tracks if track.reading is reading])
    end = max((track.end for track in tracks), default=0.0)
    length = floor(max(end, 0.0) + 0.5)
    if length == 0:
        raise MediaError(Reason.TOO_SHORT, f"{name} lasts {max(end, 0.0):.2f} s")
    if held is not None and number <= length:
        yield held


_END = object()


@dataclass
class _Reading:
    """One file that several tracks read, each on its own. Times are those of the span."""

    file: SingleFile
    name: str
    bounds: Bounds
    stopwatch: Stopwatch
    counts: Counts
    first: float
    """Second of the clip's clock at which the span begins."""
    last: float
    """Second at which it ends; infinity: it ends with the file."""
    declared: float = 0.0
    start: float = 0.0
    passed: set[str] = field(default_factory=set)
    """Kinds of streams that go on after the span."""

    def frames(self, kind: str) -> Iterator[tuple[float, VideoFrame | AudioFrame]]:
        """Frames of the video or audio stream with their times, in order; none without one.

        Those before the span have negative times.
        """
        with opened(self.file, self.name, self.bounds) as (container, streams):
            self.declared, self.start = streams.declared, streams.start
            stream = streams.video if kind == "video" else streams.audio
            if stream is None:
                return
            for frame in self._decoded(container, stream.index):
                if frame.pts is None or frame.time_base is None:
                    continue
                at = float(frame.pts * frame.time_base) - streams.start
                if at > self.bounds.max_seconds:
                    raise too_long(self.name, at, self.bounds)
                if at >= self.last:
                    self.passed.add(kind)
                    return
                yield at - self.first, frame

    def check_length(self, ends: Sequence[float]) -> None:
        """Raise `MediaError` if much less could be decoded than the file says it holds.

        Args:
            ends: last time of each track.
        """
        end = max(ends, default=0.0) + self.first
        # Some files count from their own 0. One that says it is too short is not damaged.
        if (
            not self.passed
            and self.declared >= 0.5
            and max(end, end + self.start) < 0.9 * self.declared
        ):
            raise MediaError(
                Reason.DAMAGED,
                f"{self.name}: {end:.1f} s of {self.declared:.1f} s can be decoded",
            )

    def _decoded(self, container: InputContainer, index: int) -> Iterator[VideoFrame | AudioFrame]:
        import av

        packets = container.demux(container.streams[index])
        while True:
            try:
                self.stopwatch.check()
                packet = next(packets, None)
                frames = [] if packet is None else packet.decode()
            except (av.error.InvalidDataError, av.error.EOFError) as error:
                self.counts.packet_errors += 1
                if self.counts.packet_errors > self.bounds.max_packet_errors:
                    raise MediaError(
                        Reason.DAMAGED, f"{self.name}: a packet is damaged: {error.strerror}"
                    ) from None
                continue
            if packet is None:
                return
            yield from frames


class _Pictures:
    """Views of each second of a file, or None; then `end` is the last picture's."""

    def __init__(self, reading: _Reading, views: Sequence[View]) -> None:
        self.reading, self._views = reading, views
        slots = [_Slot(i, rate, n) for n, (rate, _) in enumerate(views) for i in range(rate)]
        self._slots = sorted(slots, key=lambda slot: slot.at(0))
        self.end = 0.0

    def __iter__(self) -> Iterator[list[list[Picture]] | None]:
        shown: _Shown | None = None
        made: list[Picture | None] = []
        times = self._times()
        at, resize = next(times)
        for time, frame in self._frames():
            while at < time:
                if shown is not None:
                    made.append(shown.picture(resize))
                else:
                    made.append(None if floor(at) < floor(time) else _picture(frame, resize))
                at, resize = next(times)
                if len(made) == len(self._slots):
                    yield self._second(made)
                    made = []
            if shown is None or time >= shown.time:
                shown = _Shown(time, frame)
        if shown is None:
            return
        span = self.reading.last - self.reading.first
        passed = "video" in self.reading.passed
        self.end = span if passed else min(span, shown.time + _duration(shown.frame))
        while at < max(ceil(self.end), floor(shown.time) + 1):
            made.append(shown.picture(resize))
            at, resize = next(times)
            if len(made) == len(self._slots):
                yield self._second(made)
                made = []

    def _frames(self) -> Iterator[tuple[float, VideoFrame]]:
        reading = self.reading
        for time, frame in reading.frames("video"):
            check_pixels(frame.width, frame.height, reading.name, reading.bounds)
            reading.counts.frames += 1
            yield time, frame

    def _times(self) -> Iterator[tuple[float, Resize]]:
        second = 0
        while True:
            for slot in self._slots:
                yield slot.at(second), self._views[slot.view][1]
            second += 1

    def _second(self, made: list[Picture | None]) -> list[list[Picture]] | None:
        """The pictures of each view; None if a second has none before its end."""
        views: list[list[Picture]] = [[] for _ in self._views]
        for slot, picture in zip(self._slots, made, strict=True):
            if picture is None:
                return None
            views[slot.view].append(picture)
        return views


@dataclass(frozen=True)
class _Slot:
    """One of the pictures of a second: which one of its view."""

    number: int
    rate: int
    view: int

    def at(self, second: int) -> float:
        """Its time in a second of the clip."""
        return (second * self.rate + self.number + 0.5) / self.rate


@dataclass
class _Shown:
    """The frame that is on the screen, and its pictures once they are needed."""

    time: float
    frame: VideoFrame
    _pictures: dict[Resize, Picture] = field(default_factory=dict)

    def picture(self, resize: Resize) -> Picture:
        if resize not in self._pictures:
            self._pictures[resize] = _picture(self.frame, resize)
        return self._pictures[resize]


def _picture(frame: VideoFrame, resize: Resize) -> Picture:
    """The picture of a frame, turned as its file says."""
    return np.ascontiguousarray(np.rot90(resize(frame), round(frame.rotation / 90)))


def _duration(frame: VideoFrame) -> float:
    return float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0


class _Sound:
    """Samples of each second of a file, `[rate]` or None; then `end` is the last one's time."""

    def __init__(
        self, reading: _Reading, rate: int, frames: Iterator[tuple[float, AudioFrame]]
    ) -> None:
        self.reading, self._rate, self._frames = reading, rate, frames
        self.end = 0.0

    def __iter__(self) -> Iterator[NDArray[np.float32] | None]:
        second, buffer, filled = 0, np.zeros(self._rate, np.float32), False
        span = (self.reading.last - self.reading.first) * self._rate
        for position, samples in self._chunks():
            samples = samples[: max(0, round(min(span, position + len(samples))) - position)]
            start = max(0, second * self._rate - position)  # what overlaps is heard once
            position, samples = position + start, samples[start:]
            while len(samples):
                while position >= (second + 1) * self._rate:
                    yield buffer if filled else None
                    second, buffer, filled = second + 1, np.zeros(self._rate, np.float32), False
                within = position - second * self._rate
                count = min(len(samples), self._rate - within)
                buffer[within : within + count], filled = samples[:count], True
                position, samples = position + count, samples[count:]
                self.end = max(self.end, position / self._rate)
        if filled:
            yield buffer

    def _chunks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Resampled samples and the place of their first one; a gap begins a new resampler."""
        resampler: _Resampler | None = None
        for time, frame in self._frames:
            if resampler is None or not resampler.continues(time, frame):
                if resampler is not None:
                    yield from resampler.rest()
                resampler = _Resampler(time, frame, self._rate)
            yield from resampler.add(frame)
        if resampler is not None:
            yield from resampler.rest()


class _Resampler:
    """Sound without a gap, as mono at another rate."""

    def __init__(self, time: float, frame: AudioFrame, rate: int) -> None:
        from av import AudioResampler

        self._time, self._in_rate, self._layout = time, frame.sample_rate, frame.layout.name
        self._taken, self._place = 0, round(time * rate)
        self._float = AudioResampler("fltp", frame.layout, frame.sample_rate)
        self._mono = AudioResampler("fltp", "mono", rate)

    def continues(self, time: float, frame: AudioFrame) -> bool:
        """Whether a frame follows what was taken."""
        expected = self._time + self._taken / self._in_rate
        same = (frame.sample_rate, frame.layout.name) == (self._in_rate, self._layout)
        return same and abs(time - expected) < _GAP

    def add(self, frame: AudioFrame) -> Iterator[tuple[int, NDArray[np.float32]]]:
        from av import AudioFrame as Frame

        self._taken += frame.samples
        frame.pts = None
        for planar in self._float.resample(frame):
            mean = planar.to_ndarray().mean(0, dtype=np.float32, keepdims=True)
            mono = Frame.from_ndarray(mean, "fltp", "mono")
            mono.sample_rate = self._in_rate
            yield from self._placed(mono)

    def rest(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        yield from self._placed(None)

    def _placed(self, frame: AudioFrame | None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for resampled in self._mono.resample(frame):
            samples = resampled.to_ndarray()[0]
            yield self._place, samples
            self._place += len(samples)
