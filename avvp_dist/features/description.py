"""A media file described by backbones: one vector a second and stream."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from avvp_dist.features.backbones.backbone import Backbone, PictureBackbone, SoundBackbone
from avvp_dist.features.decoding import Counts, Picture, Second, seconds_of
from avvp_dist.features.media import Bounds, MediaFile

_Rows = NDArray[np.float32]

_SECONDS_AT_ONCE = 16
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

    @property
    def seconds(self) -> int:
        """N, the length of the file."""
        return len(next(iter(self.streams.values())))


def describe(
    file: MediaFile, name: str, backbones: Sequence[Backbone], bounds: Bounds
) -> Description:
    """Decode a file once and describe each of its seconds by all backbones.

    Args:
        name: of the file, for errors.
        backbones: each of another stream. They may want pictures and sound of different rates.

    Raises:
        MediaError: for a file that cannot be read within `bounds`.
    """
    made = Description()
    eyes = [cast(PictureBackbone, one) for one in backbones if hasattr(one, "picture")]
    ears: list[SoundBackbone] = [one for one in backbones if not hasattr(one, "picture")]
    rates = sorted({ear.rate for ear in ears})
    seconds = seconds_of(
        file,
        name,
        bounds,
        pictures=[(eye.rate, eye.picture) for eye in eyes],
        sound=rates,
        counts=made.counts,
    )
    rows: dict[str, list[NDArray[np.float32]]] = {one.stream: [] for one in backbones}
    held: list[Second] = []
    started = time.monotonic()
    for second in seconds:
        held.append(second)
        if len(held) == _SECONDS_AT_ONCE:
            made.decode_seconds += time.monotonic() - started
            made.compute_seconds += _describe(held, eyes, ears, rates, rows)
            held, started = [], time.monotonic()
    made.decode_seconds += time.monotonic() - started
    made.compute_seconds += _describe(held, eyes, ears, rates, rows)
    made.streams = {stream: np.concatenate(parts) for stream, parts in rows.items()}
    made.empty = [stream for stream, array in made.streams.items() if not array.any()]
    return made


def _describe(
    seconds: list[Second],
    eyes: Sequence[PictureBackbone],
    ears: Sequence[SoundBackbone],
    rates: Sequence[int],
    rows: dict[str, list[NDArray[np.float32]]],
) -> float:
    """Append the features of some seconds to `rows`; returns the seconds of wall time it took."""
    started = time.monotonic()
    count = len(seconds)
    for number, eye in enumerate(eyes):
        views = {n: one.views[number] for n, one in enumerate(seconds) if one.views}
        rows[eye.stream].append(_seen(eye, views, count))
    for ear in ears:
        all_sounds = ((n, one.sounds[rates.index(ear.rate)]) for n, one in enumerate(seconds))
        sounds = {n: sound for n, sound in all_sounds if sound is not None}
        rows[ear.stream].append(_heard(ear, sounds, count))
    return time.monotonic() - started


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
