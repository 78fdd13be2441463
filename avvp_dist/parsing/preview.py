"""Picture and sound of a media file for its page: small, on the clip's clock, within one file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.features import logmel
from avvp_dist.features.decoding import Picture, Second, seconds_of
from avvp_dist.features.media import Bounds, MediaError, SingleFile, opened
from avvp_dist.parsing.formats.media import Media

if TYPE_CHECKING:
    from av import VideoFrame

_RATE, _SOUND = 15, 44100
"""Pictures and samples a second of the player."""
_SIDE, _LENGTH = 360, 640
"""Pixels of a picture's shorter and longer side, at most."""
_THUMBNAILS, _THUMBNAIL_HEIGHT = 10, 90
_MEL_COLUMNS, _OFFSET = 1200, 0.01


def preview(file: SingleFile, name: str, seconds: int, bounds: Bounds, max_mib: float) -> Media:
    """Transcode a file of `seconds` to H.264 and AAC, with thumbnails and a spectrogram.

    Args:
        name: of the file, for errors.
        max_mib: MiB of the player's file; a larger one is left out.

    Raises:
        MediaError: for a file that cannot be read within `bounds`.
    """
    strips = _Strips(seconds)
    with opened(file, name, bounds) as (_, streams):
        heard = streams.audio is not None
        fit = _Fit(float((streams.video and streams.video.sample_aspect_ratio) or 1))
        first = None if streams.video is None else _first(file, name, bounds, fit)
    decoded = seconds_of(
        file,
        name,
        bounds,
        pictures=[] if first is None else [(_RATE, fit)],
        sound=[_SOUND, logmel.RATE] if heard else [],
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "player.mp4"
        _write(path, strips.kept(decoded), first, heard)
        small = path.stat().st_size <= max_mib * (1 << 20)
        player = path.read_bytes() if small else b""
    kind = "audio/mp4" if first is None else "video/mp4"
    return Media(player, kind, strips.thumbnails(), strips.spectrogram())


def _first(file: SingleFile, name: str, bounds: Bounds, fit: _Fit) -> Picture | None:
    """The first picture, whose size all have; None if there is none."""
    try:
        decoded = seconds_of(file, name, bounds, pictures=[(_RATE, fit)])
        return next((second.pictures[0] for second in decoded if second.pictures), None)
    except MediaError:  # a track without a picture
        return None


class _Fit:
    """Scales frames to the size of a player, which the first frame decides.

    Args:
        aspect: width of a pixel by its height; those of the player are square.
    """

    def __init__(self, aspect: float) -> None:
        self._aspect = aspect
        self._size: tuple[int, int] | None = None

    def __call__(self, frame: VideoFrame) -> Picture:
        if self._size is None:
            shown = frame.width * self._aspect
            short, long = sorted((shown, frame.height))
            scale = min(1.0, _SIDE / short, _LENGTH / long)
            self._size = (_even(shown * scale), _even(frame.height * scale))
        width, height = self._size
        return np.asarray(frame.reformat(width, height, "rgb24").to_ndarray())


def _even(length: float) -> int:
    """The nearest even number of pixels, which H.264 wants."""
    return max(2, 2 * round(length / 2))


class _Strips:
    """The thumbnails and the spectrogram of a clip, taken while its seconds pass."""

    def __init__(self, seconds: int) -> None:
        count = min(_THUMBNAILS, seconds)
        middles = ((part + 0.5) * seconds / count for part in range(count))
        self._wanted = {int(middle * _RATE) for middle in middles}
        self._pictures: list[Picture] = []
        self._mel: list[NDArray[np.float32]] = []

    def kept(self, decoded: Iterator[Second]) -> Iterator[Second]:
        """Pass the seconds on."""
        for number, second in enumerate(decoded):
            for part, picture in enumerate(second.pictures or []):
                if number * _RATE + part in self._wanted:
                    self._pictures.append(picture)
            if second.sounds:
                sound = second.sounds[1]
                silence = np.zeros(logmel.RATE, np.float32)
                heard = silence if sound is None else sound
                self._mel.append(logmel.log_mel(heard[None], _OFFSET)[0])
            yield second

    def thumbnails(self) -> tuple[bytes, ...]:
        """JPEG files; none if any part of the clip has no picture."""
        if len(self._pictures) < len(self._wanted):
            return ()
        return tuple(_jpeg(picture) for picture in self._pictures)

    def spectrogram(self) -> bytes:
        """PNG with time to the right and low frequencies at the bottom; empty without sound."""
        if not self._mel:
            return b""
        mel = np.concatenate(self._mel)
        step = -(-len(mel) // _MEL_COLUMNS)
        columns = np.stack([part.mean(0) for part in np.split(mel, range(step, len(mel), step))])
        low, high = float(columns.min()), float(columns.max())
        return _png((columns.T[::-1] - low) / max(high - low, 1e-6))


def _jpeg(picture: Picture) -> bytes:
    from PIL import Image

    image, file = Image.fromarray(picture), BytesIO()
    image.thumbnail((4 * _THUMBNAIL_HEIGHT, _THUMBNAIL_HEIGHT))
    image.save(file, "JPEG", quality=80)
    return file.getvalue()


def _png(values: NDArray[np.floating]) -> bytes:
    """A picture of values within 0 and 1."""
    from matplotlib import colormaps
    from PIL import Image

    file = BytesIO()
    Image.fromarray(colormaps["magma"](values, bytes=True)[..., :3]).save(file, "PNG")
    return file.getvalue()


def _write(path: Path, seconds: Iterator[Second], first: Picture | None, heard: bool) -> None:
    """Encode seconds, with the index in front of the data as browsers want it."""
    import av

    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        pictures = None if first is None else _Pictures(container, *first.shape[:2])
        sound = _Sound(container) if heard else None
        for second in seconds:
            if pictures:
                pictures.add(second.pictures)
            if sound:
                sound.add(second.sound)
        for track in (pictures, sound):
            if track:
                track.end()


class _Pictures:
    """The track of pictures; black where there are none."""

    def __init__(self, container: Any, height: int, width: int) -> None:
        options = {"preset": "veryfast", "crf": "26"}
        self._container, self._count = container, 0
        self._stream = container.add_stream("libx264", rate=_RATE, options=options)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"
        self._black = np.zeros((height, width, 3), np.uint8)

    def add(self, pictures: list[Picture] | None) -> None:
        import av

        for picture in pictures or [self._black] * _RATE:
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = self._count, Fraction(1, _RATE)
            self._count += 1
            self._container.mux(self._stream.encode(frame))

    def end(self) -> None:
        self._container.mux(self._stream.encode(None))


class _Sound:
    """The track of sound; silent where there is none."""

    def __init__(self, container: Any) -> None:
        self._container, self._count = container, 0
        self._stream = container.add_stream("aac", rate=_SOUND, layout="mono")

    def add(self, sound: NDArray[np.float32] | None) -> None:
        import av

        samples = np.zeros(_SOUND, np.float32) if sound is None else sound
        frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
        frame.sample_rate, frame.pts = _SOUND, self._count
        frame.time_base = Fraction(1, _SOUND)
        self._count += _SOUND
        self._container.mux(self._stream.encode(frame))

    def end(self) -> None:
        self._container.mux(self._stream.encode(None))
