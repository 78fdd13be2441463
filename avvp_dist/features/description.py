"""Media files described by backbones: one vector a second and stream."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from avvp_dist.features.ahead import ahead
from avvp_dist.features.backbones.backbone import Backbone, PictureBackbone, SoundBackbone
from avvp_dist.features.decoding import Counts, Picture, Second, seconds_of
from avvp_dist.features.media import Bounds, MediaError, MediaFile

_Rows = NDArray[np.float32]

BATCH = 16
"""Seconds whose pictures are held in memory and described together."""


@dataclass
class Description:
    """Features of a file, and what it took to get them."""

    streams: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """`[N, D]` by stream; zeros for a second without pictures or sound."""
    empty: list[str] = field(default_factory=list)
    """Streams of which the file has nothing."""
    counts: Counts = field(default_factory=Counts)
    decode_seconds: float = 0.0
    compute_seconds: float = 0.0
    """Wall time of the backbones. Files that share a batch share its time by their seconds."""

    @property
    def seconds(self) -> int:
        """N, the length of the file."""
        return len(next(iter(self.streams.values())))


class Decoding:
    """Seconds of a file as all backbones want them, made of one decoding while they are read."""

    def __init__(
        self,
        find: Callable[[], MediaFile],
        name: str,
        backbones: Sequence[Backbone],
        bounds: Bounds,
        span: tuple[float, float] | None = None,
    ) -> None:
        """
        Args:
            find: gives the file once its turn has come.
            name: of the file, for errors.
            backbones: each of another stream. They may want pictures and sound of different rates.
            span: start and end of the part that is described, in seconds; None: all of it.
        """
        self.counts, self.wall_seconds = Counts(), 0.0
        self._find, self._name, self._bounds, self._span = find, name, bounds, span
        self._views = [(eye.rate, eye.picture) for eye in _eyes(backbones)]
        self._rates = _rates(backbones)

    def __iter__(self) -> Iterator[Second]:
        """Yield its seconds.

        Raises:
            MediaError: for a file that cannot be read within its bounds.
        """
        seconds = self._decoded()
        while True:
            started = time.monotonic()
            second = next(seconds, None)
            self.wall_seconds += time.monotonic() - started
            if second is None:
                return
            yield second

    def _decoded(self) -> Iterator[Second]:
        yield from seconds_of(
            self._find(),
            self._name,
            self._bounds,
            pictures=self._views,
            sound=self._rates,
            counts=self.counts,
            span=self._span,
        )


def describe(
    file: MediaFile, name: str, backbones: Sequence[Backbone], bounds: Bounds
) -> Description:
    """Decode a file once and describe each of its seconds by all backbones.

    Raises:
        MediaError: for a file that cannot be read within `bounds`.
    """
    (made,) = described([Decoding(lambda: file, name, backbones, bounds)], backbones)
    if isinstance(made, MediaError):
        raise made
    return made


def described(
    decodings: Sequence[Decoding],
    backbones: Sequence[Backbone],
    *,
    threads: int = 0,
    batch: int = BATCH,
) -> Generator[Description | MediaError, None, None]:
    """Describe files, in order; a file that cannot be read gives its error.

    Batches go across files. They are the same for any number of threads.

    Args:
        backbones: those that the decodings are for.
        threads: files that are decoded at once, ahead of the backbones; 0: none ahead.
        batch: seconds that are described together.
    """
    files: deque[_File] = deque()
    held: list[tuple[_File, Second]] = []
    with closing(ahead(decodings, threads, batch)) as sources:
        for decoding, seconds in zip(decodings, sources, strict=True):
            files.append(file := _File(decoding))
            try:
                for second in seconds:
                    held.append((file, second))
                    file.waiting += 1
                    if len(held) == batch:
                        _describe(held, backbones)
                        held = []
            except MediaError as error:
                file.error = error
            file.ended = True
            while files and files[0].ready:
                yield files.popleft().result(backbones)
    if held:
        _describe(held, backbones)
    yield from (file.result(backbones) for file in files)


class _File:
    """A file that is being described: the features of its seconds so far."""

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._rows: dict[str, list[_Rows]] = {}
        self._compute_seconds = 0.0
        self.waiting = 0
        """Number of its seconds that have no features yet."""
        self.ended = False
        """Whether all its seconds are decoded."""
        self.error: MediaError | None = None

    @property
    def ready(self) -> bool:
        return self.ended and (self.waiting == 0 or self.error is not None)

    def add(self, row: Mapping[str, _Rows], compute_seconds: float) -> None:
        """Take the features of its next second, `[D]` by stream."""
        for stream, features in row.items():
            self._rows.setdefault(stream, []).append(features)
        self.waiting -= 1
        self._compute_seconds += compute_seconds

    def result(self, backbones: Sequence[Backbone]) -> Description | MediaError:
        if self.error is not None:
            return self.error
        streams = {one.stream: np.stack(self._rows[one.stream]) for one in backbones}
        return Description(
            streams,
            [stream for stream, array in streams.items() if not array.any()],
            self._decoding.counts,
            self._decoding.wall_seconds,
            self._compute_seconds,
        )


def _describe(held: Sequence[tuple[_File, Second]], backbones: Sequence[Backbone]) -> None:
    """Describe some seconds together, and give each file the features of its own."""
    started = time.monotonic()
    seconds = [second for _, second in held]
    streams: dict[str, _Rows] = {}
    for number, eye in enumerate(_eyes(backbones)):
        views = {n: one.views[number] for n, one in enumerate(seconds) if one.views}
        streams[eye.stream] = _seen(eye, views, len(seconds))
    rates = _rates(backbones)
    for ear in _ears(backbones):
        all_sounds = ((n, one.sounds[rates.index(ear.rate)]) for n, one in enumerate(seconds))
        sounds = {n: sound for n, sound in all_sounds if sound is not None}
        streams[ear.stream] = _heard(ear, sounds, len(seconds))
    share = (time.monotonic() - started) / len(seconds)
    for number, (file, _) in enumerate(held):
        file.add({stream: array[number] for stream, array in streams.items()}, share)


def _eyes(backbones: Sequence[Backbone]) -> list[PictureBackbone]:
    return [cast(PictureBackbone, one) for one in backbones if hasattr(one, "picture")]


def _ears(backbones: Sequence[Backbone]) -> list[SoundBackbone]:
    return [one for one in backbones if not hasattr(one, "picture")]


def _rates(backbones: Sequence[Backbone]) -> list[int]:
    """Rates at which sound is decoded, each once."""
    return sorted({ear.rate for ear in _ears(backbones)})


def _seen(eye: PictureBackbone, views: Mapping[int, list[Picture]], count: int) -> _Rows:
    """Features `[count, dim]`, the mean of each second's; zeros for those that are not in views."""
    array = np.zeros((count, eye.dim), np.float32)
    if views:
        pictures = np.concatenate([np.stack(view) for view in views.values()])
        array[list(views)] = eye.features(pictures).reshape(len(views), -1, eye.dim).mean(1)
    return array


def _heard(ear: SoundBackbone, sounds: Mapping[int, _Rows], count: int) -> _Rows:
    """Features `[count, dim]`; zeros for the seconds that are not in sounds."""
    array = np.zeros((count, ear.dim), np.float32)
    if sounds:
        array[list(sounds)] = ear.features(np.stack(list(sounds.values())))
    return array
