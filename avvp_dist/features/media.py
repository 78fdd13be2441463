"""Media files: which streams are read, on which clock, within which bounds, and why one fails."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from avvp_dist.config import MediaConfig
from avvp_dist.errors import DataError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

SingleFile = Path | bytes
"""A file on a disk, or the content of one."""


@dataclass(frozen=True)
class FilePair:
    """Two files of one clip, each on its own clock: one has the pictures, the other the sound."""

    pictures: SingleFile
    sound: SingleFile


MediaFile = SingleFile | FilePair
"""Media of one clip."""

_UNITS_PER_SECOND = 1_000_000
"""Units of a container's duration, AV_TIME_BASE of FFmpeg."""
FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "matroska", "webm", "mpegts", "mpeg", "avi", "flv", "asf"),
    *("gif", "flac", "wav", "mp3", "ogg", "aac", "aiff", "amr"),
)
"""Formats of FFmpeg that are opened. Lists, which name other files, are none of them."""


class Reason(str, Enum):
    """Why a file gives no features; each file that fails has one."""

    UNREADABLE = "unreadable"
    UNSUPPORTED = "unsupported"
    NO_SOUND = "no_sound"
    NO_PICTURE = "no_picture"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    TOO_LARGE = "too_large"
    DAMAGED = "damaged"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    DUPLICATE_ID = "duplicate_id"
    MISSING = "missing"


class MediaError(DataError):
    """A media file that cannot be used; `reason` says why in one word."""

    def __init__(self, reason: Reason, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{message} ({reason.value})", remedy=remedy)
        self.reason = reason


@dataclass(frozen=True)
class Bounds:
    """Limits within which a file is decoded."""

    max_pixels: int = 8192 * 4320
    """Pixels of a picture."""
    max_seconds: float = 3600.0
    max_bytes: int = 4 << 30
    timeout: float = 120.0
    """Seconds of wall time that the decoding of one file may take."""
    max_packet_errors: int = 0
    """Damaged packets that are skipped."""

    @classmethod
    def of(cls, config: MediaConfig) -> Bounds:
        """The limits that a stage's keys give."""
        return cls(**{one.name: getattr(config, one.name) for one in fields(cls)})


@dataclass(frozen=True)
class Streams:
    """The first video stream that is no attached picture, and the first audio stream."""

    video: av.VideoStream | None
    audio: av.AudioStream | None
    start: float
    """Seconds on the container's clock at which the clip's own clock is 0."""
    declared: float
    """Seconds that the file says it lasts; 0 if it does not say."""


@contextmanager
def opened(file: SingleFile, name: str, bounds: Bounds) -> Iterator[tuple[InputContainer, Streams]]:
    """Open a media file; nothing but the file itself is ever read.

    Raises:
        MediaError: if it is none, or larger than `bounds` allow. Errors of FFmpeg within the block
            become one too.
    """
    import av

    check_bytes(len(file) if isinstance(file, bytes) else _size(file, name), name, bounds)
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    source = io.BytesIO(file) if isinstance(file, bytes) else f"file:{file}"
    # Tags may be in any encoding, and none is read. From version 19 on PyAV takes them all.
    tags = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
    try:
        with av.open(source, options=options, timeout=bounds.timeout, **tags) as container:
            yield container, _streams(container, name, bounds)
    except av.error.ExitError:
        raise timed_out(name, bounds) from None
    except av.error.FFmpegError as error:
        raise MediaError(
            Reason.UNREADABLE, f"{name} is no media file, or damaged: {error.strerror}"
        ) from None


class Stopwatch:
    """Adds up the wall time that a file takes, without that of whoever reads its seconds."""

    def __init__(self, name: str, bounds: Bounds) -> None:
        self._name, self._bounds = name, bounds
        self._seconds, self._started = 0.0, 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block."""
        self._started = time.monotonic()
        yield
        self._seconds += time.monotonic() - self._started

    def check(self) -> None:
        """Raise `MediaError` if the time so far is longer than the bounds allow."""
        if self._seconds + time.monotonic() - self._started > self._bounds.timeout:
            raise timed_out(self._name, self._bounds)


def _size(file: Path, name: str) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        reason = Reason.MISSING if isinstance(error, FileNotFoundError) else Reason.UNREADABLE
        raise MediaError(reason, f"{name} cannot be read: {error.strerror}") from None


def _streams(container: InputContainer, name: str, bounds: Bounds) -> Streams:
    from av.stream import Disposition

    pictures = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
    video, audio = next(pictures, None), next(iter(container.streams.audio), None)
    chosen = [stream for stream in (video, audio) if stream is not None]
    if not chosen:
        reason = Reason.UNSUPPORTED if len(container.streams) else Reason.UNREADABLE
        raise MediaError(reason, f"{name} holds neither pictures nor sound")
    for stream in chosen:
        if stream.codec_context is None:
            raise MediaError(Reason.UNSUPPORTED, f"{name}: no decoder for its {stream.type}")
        stream.codec_context.thread_count = 1
    if video is not None:
        check_pixels(video.codec_context.width, video.codec_context.height, name, bounds)
    starts = [
        float(s.start_time * s.time_base)
        for s in chosen
        if s.start_time is not None and s.time_base
    ]
    declared = (container.duration or 0) / _UNITS_PER_SECOND
    if declared > bounds.max_seconds:
        raise too_long(name, declared, bounds)
    return Streams(video, audio, min(starts, default=0.0), declared)


def check_bytes(size: int, name: str, bounds: Bounds) -> None:
    """Raise `MediaError` for a file of too many bytes, before it is read."""
    if size > bounds.max_bytes:
        raise MediaError(Reason.TOO_LARGE, f"{name} has {size:,} bytes, over {bounds.max_bytes:,}")


def check_pixels(width: int, height: int, name: str, bounds: Bounds) -> None:
    """Raise `MediaError` for a picture of too many pixels, before it takes memory."""
    if width * height > bounds.max_pixels:
        raise MediaError(
            Reason.TOO_LARGE,
            f"{name} has pictures of {width} x {height}, over {bounds.max_pixels:,} pixels",
        )


def timed_out(name: str, bounds: Bounds) -> MediaError:
    """The error for a file whose decoding takes longer than its bounds allow."""
    return MediaError(Reason.TIMEOUT, f"{name}: decoding takes over {bounds.timeout:g} s")


def too_long(name: str, seconds: float, bounds: Bounds) -> MediaError:
    """The error for a file of more seconds than its bounds allow."""
    return MediaError(Reason.TOO_LONG, f"{name} lasts {seconds:.0f} s, over {bounds.max_seconds:g}")
