"""Media files in a request: decoded within bounds, and described as the model's features were.

`av` and the packages of the backbones are imported when the first file comes. Weights are looked
for where they are installed and in the cache; nothing is downloaded.
"""

from __future__ import annotations

import os
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from avvp_dist.errors import AvvpError, ConfigError, first_line
from avvp_dist.features.backbones.backbone import Backbone
from avvp_dist.features.backbones.registry import backbones_of, dims_of, open_backbones
from avvp_dist.features.description import describe
from avvp_dist.features.media import Bounds, MediaError, MediaFile, Reason
from avvp_dist.parsing.windows import missing_modalities, rounded
from avvp_dist.serving.requests import ClipRequest, MediaRequest, RequestError
from avvp_dist.tracking.packaging import VIDEO

ROOT = "AVVP_MEDIA_ROOT"
"""Variable that names the folder whose files a request may name. Without it, none may be."""
BOUNDS = Bounds(max_pixels=4096 * 2304, max_seconds=600.0, timeout=50.0)
"""Limits of a file. MLflow's server waits 60 s for an answer."""
SENT_BYTES = 64 << 20
"""Maximum size of a file inside a request."""


class MediaReader:
    """Turns the media files of requests into the features that a model reads.

    Args:
        dims: feature size of each stream of the model.
        extractor: name of the backbones that made the features it was trained on.
    """

    def __init__(self, dims: Mapping[str, int], extractor: str) -> None:
        self._dims, self._extractor = dims, extractor
        self._backbones: list[Backbone] = []

    def described(self, records: Sequence[ClipRequest | MediaRequest]) -> list[ClipRequest]:
        """Replace media files by their features, `[N, D]` per stream.

        Raises:
            RequestError: naming the first file that is wrong, or what the server lacks; before
                any of them is decoded, unless it is damaged itself.
        """
        media = [one for one in records if isinstance(one, MediaRequest)]
        if media and not self._backbones:
            try:
                self._backbones = self._opened()
            except AvvpError as error:
                raise RequestError(f"{media[0].place}: {error}") from None
        files = {one.place: media_file(one) for one in media}
        return [
            self._clip(one, files[one.place]) if isinstance(one, MediaRequest) else one
            for one in records
        ]

    def _opened(self) -> list[Backbone]:
        """The backbones of the extractor.

        Raises:
            ConfigError: if they make other features, or their weights or packages are missing.
        """
        try:
            names = backbones_of(self._extractor)
        except ConfigError:
            names = []
        if dims_of(names) != self._dims:
            raise ConfigError(
                f"features of {self._extractor!r} cannot be extracted here",
                remedy=f"Give {', '.join(self._dims)}",
            )
        try:
            import_module("av")
        except ImportError as error:
            raise ConfigError(
                f"decoding needs av: {first_line(error)}", remedy="pip install av"
            ) from None
        return open_backbones(names, {})

    def _clip(self, request: MediaRequest, file: MediaFile) -> ClipRequest:
        bounds = replace(BOUNDS, max_bytes=SENT_BYTES) if request.column == VIDEO else BOUNDS
        try:
            made = describe(file, request.place, self._backbones, bounds)
        except MediaError as error:
            raise RequestError(str(error)) from None
        except Exception as error:
            # MLflow would answer any other exception with its traceback.
            raise RequestError(
                f"{request.place} cannot be decoded: {type(error).__name__}"
            ) from error
        return ClipRequest(request.id, rounded(made.streams), missing_modalities(made))


def media_file(request: MediaRequest) -> MediaFile:
    """The file that a request holds or names.

    Raises:
        RequestError: if it is no base64, too large, or not inside `AVVP_MEDIA_ROOT`.
    """
    if request.column == VIDEO:
        return _decoded(request)
    root = os.environ.get(ROOT)
    if not root:
        raise RequestError(f"{request.place}: this server reads no files, {ROOT} is not set")
    try:
        folder = Path(root).resolve(strict=True)
        file = (folder / request.text).resolve(strict=True)
        inside = file.is_relative_to(folder) and file.is_file()
    except (OSError, RuntimeError, ValueError):  # missing, a circle of links, or no name of a file
        inside = False
    if not inside:
        # The same words for files outside, whether they exist or not.
        raise RequestError(f"{request.place} is no file inside {ROOT}")
    return file


def _decoded(request: MediaRequest) -> bytes:
    size = len(request.text) * 3 // 4
    if size > SENT_BYTES:
        too_large = f"{request.place} has {size:,} bytes, over {SENT_BYTES:,}"
        raise RequestError(str(MediaError(Reason.TOO_LARGE, too_large)))
    try:
        return b64decode("".join(request.text.split()), validate=True)
    except ValueError:
        raise RequestError(f"{request.place} is no base64") from None
