"""Files at a URL: any protocol of fsspec, with a limit on attempts and waiting."""

from __future__ import annotations

import io
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from avvp_dist.errors import DataError, StorageError, first_line

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T")

ATTEMPTS = 6
STALLED_SECONDS = 60.0
"""Time without an answer after which a request is given up and made again."""
_LONGEST_PAUSE = 20.0
_BLOCK = 1 << 18
"""Bytes that `open_url` requests at once."""
_VERSIONS = ("ETag", "etag", "LastModified", "Last-Modified", "last_modified", "mtime", "updated")
"""Entries of a file system's listing that another content changes, the best ones first."""


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL, as far as it is known without reading it."""

    url: str
    bytes: int | None = None
    version: str = ""
    """Its entity tag, or its time of modification; empty: not known."""

    @classmethod
    def of(cls, url: str, entry: dict[str, Any]) -> RemoteFile:
        """The file that an entry of a file system's listing describes."""
        size, versions = entry.get("size"), (entry.get(name) for name in _VERSIONS)
        version = next((str(one) for one in versions if one), "")
        return cls(url, None if size is None else int(size), version)

    def __str__(self) -> str:
        return self.url


def is_url(place: str) -> bool:
    """Whether `place` is a URL of fsspec, such as `s3://BUCKET/FOLDER`.

    Raises:
        DataError: for a `pipe:` URL, because it would start a shell, or a URL with a password,
            because it would appear in every message and record.
    """
    if place.startswith("pipe:"):
        raise DataError(f"{place}: pipe: URLs are refused: they start a shell")
    if match := re.match(r"([^/]+://)[^/]*:[^/]*@(.*)", place):
        raise DataError(
            f"{match[1]}...@{match[2]} has a password in it, which would be recorded",
            remedy="Give it by fsspec's configuration or the environment variables of its library",
        )
    return "://" in place


def read_url(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes of a URL, from `start` to `end` without the last, or all.

    A request that fails or stalls is made again, after growing pauses.

    Raises:
        FileNotFoundError: if the server has no such file.
        StorageError: naming the URL, if it cannot be read.
    """
    filesystem, path = _filesystem(url)
    return _insist(url, lambda: bytes(filesystem.cat_file(path, start=start, end=end)))


def list_url(url: str) -> dict[str, int] | None:
    """Size of each file in a folder at a URL, by name; None over HTTP, which has no listings.

    Raises:
        StorageError: naming the URL, if it cannot be read.
    """
    if not (folder := _folder(url)):
        return None
    filesystem, path = folder
    entries = _insist(url, lambda: list(filesystem.ls(path, detail=True)))
    return {
        entry["name"].rstrip("/").rpartition("/")[2]: int(entry["size"] or 0)
        for entry in entries
        if entry["type"] == "file"
    }


def find_url(url: str) -> list[RemoteFile] | None:
    """Files in a folder at a URL and in those in it, in order; None over HTTP.

    Raises:
        StorageError: naming the URL, if it cannot be read.
    """
    if not (folder := _folder(url)):
        return None
    filesystem, path = folder
    found = _insist(url, lambda: dict(filesystem.find(path, detail=True)))
    return [
        RemoteFile.of(filesystem.unstrip_protocol(name), entry)
        for name, entry in sorted(found.items())
    ]


def stat_url(url: str) -> RemoteFile:
    """Size and version of a file at a URL, of which a server over HTTP may tell neither.

    Raises:
        FileNotFoundError: if the server has no such file.
        StorageError: naming the URL, if it cannot be read.
    """
    filesystem, path = _filesystem(url)
    return RemoteFile.of(url, _insist(url, lambda: dict(filesystem.info(path))))


def open_url(file: RemoteFile) -> io.BufferedReader:
    """Open a file at a URL, of known size, for reading and seeking, in small requests."""
    return io.BufferedReader(_Ranges(file), _BLOCK)


class _Ranges(io.RawIOBase):
    """A file at a URL, of which each read is a request."""

    def __init__(self, file: RemoteFile) -> None:
        self._url, self._size, self._at = file.url, file.bytes or 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_CUR: self._at, io.SEEK_END: self._size}.get(whence, 0)
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        end = min(self._at + len(view), self._size)
        data = read_url(self._url, self._at, end) if self._at < end else b""
        if len(data) != max(0, end - self._at):
            raise StorageError(
                f"{self._url}: its server does not send the part that is asked for",
                remedy="Copy the file to a disk, or to another server",
            )
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _folder(url: str) -> tuple[Any, str] | None:
    """File system and path of a folder, to be listed anew; None over HTTP."""
    if re.match("https?:", url):
        return None
    filesystem, path = _filesystem(url)
    filesystem.invalidate_cache()
    return filesystem, path


def _insist(url: str, request: Callable[[], T]) -> T:
    """Value of `request()`, made again after growing pauses if it fails or stalls."""
    failure: BaseException = TimeoutError()
    for attempt in range(ATTEMPTS):
        try:
            return _answer(request)
        except FileNotFoundError:
            raise
        except Exception as error:  # each file system has error types of its own
            failure = error
        if attempt < ATTEMPTS - 1:
            time.sleep(min(_LONGEST_PAUSE, 0.5 * 2**attempt) * random.uniform(0.5, 1))
    raise StorageError(
        f"{url} could not be read, {ATTEMPTS} times "
        f"({type(failure).__name__}: {first_line(failure)})",
        remedy="Check the address, the credentials and the network, and start again",
    ) from failure


def _answer(request: Callable[[], T]) -> T:
    """Value of `request()`, which runs in a thread that is abandoned if it stalls."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(request())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    if not wait([answer], STALLED_SECONDS).done:
        raise TimeoutError(f"no answer in {STALLED_SECONDS:g} s")
    return answer.result()


def _filesystem(url: str) -> tuple[Any, str]:
    """File system of a URL, including its host, and the path in it.

    Raises:
        StorageError: naming the URL, if there is none for it.
    """
    try:
        return _opened(url)
    except ImportError as error:
        raise StorageError(
            f"{url} cannot be read: {error}", remedy="Install avvp-dist[s3], [gcs] or [http]"
        ) from None
    except (ValueError, TypeError, OSError) as error:  # some file systems connect here
        raise StorageError(f"{url} cannot be read: {error}") from None


def _opened(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # takes a while, and local shard sets need none

    protocol = url.partition("://")[0]
    # A library's own retries would multiply the attempts that are counted here.
    options = {"s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}}}.get(protocol, {})
    filesystem, path = url_to_fs(url, **options)
    if protocol == "s3":
        filesystem.retries = 1
    return filesystem, path
