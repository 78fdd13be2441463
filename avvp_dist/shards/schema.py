"""The record of a clip: its id, its named streams, its labels; and its key in a tar."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import DataError

AUDIO = "audio"
"""The name of the audio stream; every other stream of a shard set is visual."""

DTYPES = ("float16", "float32")
"""Element types of stored features; all streams of a shard set have the same."""

SMALLEST, LARGEST = 1e-17, 1e17
"""Limits of rows in float32: cosines are computed in float32, which must hold their squares."""

PADDING = 255
"""Component id of a snippet that is padding."""

MODALITY_IDS = 256
"""Component ids of two graphs in one number: the id in that of audio times this, plus the id in
that of vision."""

HAN_EXTRACTOR = "VGGish, ResNet-152, R(2+1)D-18 (HAN)"
"""Extractors of the features of HAN's release."""

AUDIOSET_EXTRACTOR = "VGGish, PCA whitened, 8 bit (AudioSet)"
"""Extractor of AudioSet's official embeddings, whose values differ from plain VGGish."""

LLP_CLASSES = (
    "Speech",
    "Car",
    "Cheering",
    "Dog",
    "Cat",
    "Frying_(food)",
    "Basketball_bounce",
    "Fire_alarm",
    "Chainsaw",
    "Cello",
    "Banjo",
    "Singing",
    "Chicken_rooster",
    "Violin_fiddle",
    "Vacuum_cleaner",
    "Baby_laughter",
    "Accordion",
    "Lawn_mower",
    "Motorcycle",
    "Helicopter",
    "Acoustic_guitar",
    "Telephone_bell_ringing",
    "Baby_cry_infant_cry",
    "Blender",
    "Clapping",
)
"""The 25 event classes of LLP in the official order (Tian et al., ECCV 2020)."""


@dataclass(frozen=True)
class Clip:
    """One clip: `streams[name]` is float `[t, D]`, row n describes second n.

    `length` is the number of real snippets. If it is None, it is the number of rows of each
    stream, which must be the same. `labels` are weak (video-level) class names, None when unknown.
    """

    id: str
    streams: dict[str, NDArray[np.floating]]
    labels: tuple[str, ...] | None = None
    length: int | None = None

    def padded(self, snippets: int, dims: dict[str, int], dtype: str = "float16") -> Clip:
        """The clip as `[snippets, D]` of one of `DTYPES`, with zeros after its `length`.

        Raises:
            DataError: naming the clip, if it is not finite, has other streams or dims, is longer
                than `snippets`, or has values beyond what `dtype` can hold.
        """
        if not self.id or not re.fullmatch("[^\0\ud800-\udfff]+", self.id):
            raise DataError(f"{self.id!a} is no id of a clip")
        if set(self.streams) != set(dims):
            raise DataError(
                f"clip {self.id} has the streams {sorted(self.streams)}, "
                f"the shard set has {sorted(dims)}"
            )
        length = self.length
        if length is None:
            rows = {name: len(x) if x.ndim else 0 for name, x in sorted(self.streams.items())}
            length = min(rows.values())
            if length < max(rows.values()):
                counts = ", ".join(f"{name} {count}" for name, count in rows.items())
                raise DataError(
                    f"clip {self.id}: its streams differ in length, rows are: {counts}",
                    remedy="Bring them to one row a second, or give the clip's length",
                )
        if not 0 < length <= snippets:
            raise DataError(f"clip {self.id}: length {length} is not within {snippets} snippets")
        streams: dict[str, NDArray[np.floating]] = {}
        for name, dim in dims.items():
            array = self.streams[name]
            if array.ndim != 2 or array.shape[1] != dim or not length <= len(array) <= snippets:
                raise DataError(
                    f"clip {self.id}: stream {name} is {list(array.shape)}, "
                    f"the shard set holds [{snippets}, {dim}]",
                    remedy="Pack clips of other sizes into a shard set of their own",
                )
            streams[name] = np.zeros((snippets, dim), np.dtype(dtype).newbyteorder("<"))
            with np.errstate(over="ignore"):
                streams[name][:length] = array[:length]
            self._check_values(name, array, streams[name][:length])
        return Clip(self.id, streams, self.labels, length)

    def _check_values(
        self, name: str, array: NDArray[np.floating], stored: NDArray[np.floating]
    ) -> None:
        if not np.isfinite(array).all():
            raise DataError(
                f"clip {self.id}: stream {name} holds values that are not finite",
                remedy="Extract its features again or leave the clip out",
            )
        half = stored.dtype == np.float16
        wider = ", or pack with dtype=float32" if half else ""
        if _lost(array[: len(stored)], stored):
            limit = (
                "float16, which would change by more than 3 % (about 5e-7)"
                if half
                else f"their cosines ({SMALLEST:g}), which are computed in float32"
            )
            raise DataError(
                f"clip {self.id}: stream {name} has rows too small for {limit}",
                remedy=f"Scale its features up before packing{wider}",
            )
        if not finite(stored) or (not half and np.abs(stored).max(initial=0) > LARGEST):
            limit = (
                "float16 (65504)" if half else f"{LARGEST:g}, and float32 holds no squares of it"
            )
            raise DataError(
                f"clip {self.id}: stream {name} exceeds {limit}",
                remedy=f"Scale its features down before packing{wider}",
            )


def _lost(array: NDArray[np.floating], stored: NDArray[np.floating]) -> bool:
    """Whether rows of `array [t, D]`, stored as `stored [t, D]`, are no longer what they were."""
    largest = np.abs(array).max(1, initial=0)
    if stored.dtype == np.float32:
        return bool(((largest > 0) & (largest < SMALLEST)).any())
    small = np.flatnonzero((largest > 0) & (largest < 1e-5))  # the first bit that float16 loses
    exact = array[small].astype(np.float64) / largest[small, None]
    change = stored[small].astype(np.float64) / largest[small, None] - exact
    return bool(((change**2).sum(1) > 1e-3 * (exact**2).sum(1)).any())


def finite(array: NDArray[np.floating]) -> bool:
    """Whether all values of an array of `DTYPES` are finite, many times faster than `np.isfinite`.

    Compared as integers, the bits of infinity and NaN are the largest ones of either sign.
    """
    infinity = np.array([np.inf, -np.inf], array.dtype)
    bits = f"{array.dtype.itemsize}"
    return not array.size or bool(
        array.view("i" + bits).max() < infinity.view("i" + bits)[0]
        and array.view("u" + bits).max() < infinity.view("u" + bits)[1]
    )


def check_stream_names(names: Iterable[str]) -> None:
    """Raise `DataError` for a stream whose name cannot be that of a tar's member.

    WebDataset cuts a member's name at its first dot and its path at a slash: such a stream would
    be another clip.
    """
    for name in names:
        if not re.fullmatch("[A-Za-z0-9_-]+", name):
            raise DataError(
                f"stream {name!r}: the name of a stream is made of letters, digits, _ and -",
                remedy=f"Name it {re.sub('[^A-Za-z0-9_-]+', '-', name).strip('-') or 'visual'}",
            )


def encode_key(clip_id: str) -> str:
    """Encode a clip id as a WebDataset key: letters, digits, `_` and `-` stay, others become `=XX`.

    This is needed because WebDataset cuts a key at its first dot and a path at a slash.
    `decode_key` is the inverse.
    """
    return re.sub(rb"[^A-Za-z0-9_-]", lambda m: b"=%02X" % m.group()[0], clip_id.encode()).decode()


def tar_key(clip_id: str, streams: Iterable[str]) -> str:
    """Encode a clip id as the key of its members, `KEY.STREAM.npy`.

    Raises:
        DataError: if a member's name would be longer than the 100 bytes that a tar has for it.
    """
    key = encode_key(clip_id)
    if len(key) + max(map(len, streams)) + len("..npy") > 100:
        raise DataError(f"clip {clip_id}: its id is too long for a tar")
    return key


def decode_key(key: str) -> str:
    """Clip id of a key that `encode_key` made."""
    return re.sub(rb"=([0-9A-F]{2})", lambda m: bytes([int(m.group(1), 16)]), key.encode()).decode()
