"""Picture and sound of a clip, for formats that show them."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass


@dataclass(frozen=True)
class Media:
    """Picture and sound of a clip of N seconds, on the clip's clock; each part may be empty."""

    player: bytes = b""
    """File that a browser can play, whose time 0 is the clip's."""
    player_type: str = "video/mp4"
    """MIME type of `player`: video or audio."""
    thumbnails: tuple[bytes, ...] = ()
    """PNG or JPEG files; each shows the middle of an equal part of the clip, in order."""
    log_mel: bytes = b""
    """PNG of the log-mel spectrogram from 0 to N s, low frequencies at the bottom."""


def data_url(content: bytes, mime: str) -> str:
    """A file as a `data:` URL."""
    return f"data:{mime};base64,{b64encode(content).decode()}"


def image_url(image: bytes) -> str:
    """A PNG or JPEG file as a `data:` URL."""
    return data_url(image, "image/png" if image.startswith(b"\x89PNG") else "image/jpeg")
