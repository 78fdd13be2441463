"""Files at a URL: any protocol of fsspec, with a limit on attempts and waiting."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from avvp_dist.errors import DataError, StorageError, first_line

T = TypeVar("T")

ATTEMPTS = 6
STALLED_SECONDS = 60.0
"""Time without an answer after which a request is given up and made again."""
_LONGEST_PAUSE = 20.0


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
    if re.match("https?:", url):
        return None
    filesystem, path = _filesystem(url)
    filesystem.invalidate_cache()
    entries = _insist(url, lambda: list(filesystem.ls(path, detail=True)))
    return {
        entry["name"].rstrip("/").rpartition("/")[2]: int(entry["size"] or 0)
        for entry in entries
        if entry["type"] == "file"
    }


def _insist(url: str, request: Callable[[], T]) -> T:
    """Value of `request()`, made again after growing pauses if it fails or stalls."""
    for attempt in range(ATTEMPTS):
        try:
            return _answer(request)
        except FileNotFoundError:
            raise
        except Exception as error:  # each file system has error types of its own
            failure = f"{type(error).__name__}: {first_line(error)}"
        if attempt < ATTEMPTS - 1:
            time.sleep(min(_LONGEST_PAUSE, 0.5 * 2**attempt) * random.uniform(0.5, 1))
    raise StorageError(
        f"{url} could not be read, {ATTEMPTS} times ({failure})",
        remedy="Check the address, the credentials and the network, and start again",
    )


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
