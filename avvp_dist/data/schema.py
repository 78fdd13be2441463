"""The one record that travels: a clip's id, its named streams, its labels."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import DataError

AUDIO = "audio"
"""The name of the audio stream; every other stream of a shard set is visual."""

PADDING = 255
"""Component id of a snippet that is padding."""

HAN_EXTRACTOR = "VGGish, ResNet-152, R(2+1)D-18 (HAN)"
"""What made the features of HAN's release."""

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
    """One clip: `streams[name]` is float `[T, D]`, row t describes second t.

    `length` <= T is the number of real snippets, the rest is padding; `labels` are weak
    (video-level) class names, `None` when unknown.
    """

    id: str
    streams: dict[str, NDArray[np.floating]]
    labels: tuple[str, ...] | None = None
    length: int | None = None

    def check(self, snippets: int, dims: dict[str, int]) -> None:
        """Raise `DataError` naming the clip unless it is whole, finite and of these sizes."""
        if set(self.streams) != set(dims):
            raise DataError(
                f"clip {self.id} has the streams {sorted(self.streams)}, "
                f"the shard set has {sorted(dims)}"
            )
        if self.length is not None and not 0 < self.length <= snippets:
            raise DataError(
                f"clip {self.id}: length {self.length} is not within its {snippets} snippets"
            )
        for name, dim in dims.items():
            array = self.streams[name]
            if array.shape != (snippets, dim):
                raise DataError(
                    f"clip {self.id}: stream {name} is {list(array.shape)}, "
                    f"the shard set holds [{snippets}, {dim}]",
                    remedy="Pack clips of other sizes into a shard set of their own",
                )
            if not np.isfinite(array).all():
                raise DataError(
                    f"clip {self.id}: stream {name} holds values that are not finite",
                    remedy="Extract its features again or leave the clip out",
                )


def encode_key(clip_id: str) -> str:
    """A clip id as a WebDataset key: letters, digits, `_` and `-` stay, others become `=XX`.

    WebDataset cuts a key at its first dot and a path at a slash; `decode_key` undoes this.
    """
    return re.sub(rb"[^A-Za-z0-9_-]", lambda m: b"=%02X" % m.group()[0], clip_id.encode()).decode()


def decode_key(key: str) -> str:
    """The clip id of a key made by `encode_key`."""
    return re.sub(rb"=([0-9A-F]{2})", lambda m: bytes([int(m.group(1), 16)]), key.encode()).decode()
