"""Places of media: a file, a file at a URL, or a part of a tar at either."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avvp_dist.errors import StorageError
from avvp_dist.features.media import Bounds, MediaError, Reason, SingleFile, check_bytes
from avvp_dist.shards.remote import is_url, read_url, stat_url

_BUSY = (408, 429)
"""Statuses of HTTP with which a server asks to be asked again."""


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of a media file. FFmpeg is never given a URL."""

    address: str
    """Path or URL."""
    start: int = 0
    size: int | None = None
    """Number of bytes; None: all."""
    version: str = ""
    """Entity tag or time of a file at a URL; empty: not known."""

    def open(self, name: str, bounds: Bounds) -> SingleFile:
        """The file on a disk, or the bytes that were fetched.

        Args:
            name: of the media, for errors.

        Raises:
            MediaError: if they are not there, more than `bounds` allow, or others than before.
            StorageError: if a server cannot be read, which says nothing about the media.
        """
        remote = is_url(self.address)
        if self.size is None and not remote:
            return Path(self.address)
        try:
            size = self.size if self.size is not None else stat_url(self.address).bytes
            check_bytes(size or 0, name, bounds)
            data = self._fetch() if remote else self._read()
        except StorageError as error:
            if not _refused(error.__cause__):
                raise
            raise MediaError(Reason.MISSING, f"{name} cannot be read: {error}") from None
        except OSError as error:
            reason = Reason.MISSING if isinstance(error, FileNotFoundError) else Reason.UNREADABLE
            why = error.strerror or "there is none"
            raise MediaError(reason, f"{name} cannot be read: {why}") from None
        if self.size is not None and len(data) != self.size:
            raise MediaError(
                Reason.UNREADABLE, f"{name} has {len(data)} bytes, and had {self.size} when listed"
            )
        return data

    def _fetch(self) -> bytes:
        if self.size is None or not self.start:
            return read_url(self.address)
        return read_url(self.address, self.start, self.start + self.size)

    def _read(self) -> bytes:
        with Path(self.address).open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def _refused(cause: BaseException | None) -> bool:
    """Whether a server has answered that it will not give the file."""
    status = getattr(cause, "status", 0)
    return isinstance(cause, PermissionError) or (400 <= status < 500 and status not in _BUSY)
