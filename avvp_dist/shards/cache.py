"""The local cache: remote files, whole and verified, in a bounded folder that processes share."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from avvp_dist.commit import staged
from avvp_dist.errors import DataError, StorageError
from avvp_dist.shards import remote

_CHUNK = 16 << 20
_STALE_SECONDS = 600.0
"""A temporary file that has not grown for so long belongs to a process that was killed."""
_OURS = re.compile(r"\.?[0-9a-f]{24}-")


class Cache:
    """A folder of fetched files, of at most `most` bytes; the least recently used go first.

    A file is named by its full URL and its SHA-256. It appears under that name whole and verified
    or not at all, whoever else fetches it at the same time; a lock spares the second fetch.
    """

    def __init__(self, folder: Path, maximum: int) -> None:
        self.folder, self.maximum = folder, maximum

    def fetch(self, url: str, size: int, sha256: str) -> Path:
        """The local file with the content of `url`; fetched if it is not there.

        A reader keeps what it has opened when the file is removed for others.

        Raises:
            DataError: naming the URL, if it cannot be read or is not what its manifest says, or
                naming the file, if the disk is full.
        """
        name = hashlib.sha256(f"{url}\n{sha256}".encode()).hexdigest()[:24]
        path = self.folder / f"{name}-{url.rpartition('/')[2]}"
        try:
            if self._hit(path, size):
                return path
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / f".{path.name}.lock")
            # Who fetches may have met a stall, which must not add up over those who wait.
            with suppress(Timeout):
                lock.acquire(timeout=remote.ATTEMPTS * remote.STALLED_SECONDS)
            try:
                if not self._hit(path, size):
                    with staged(path) as temporary:
                        self._make_room(size, temporary)
                        _download(url, temporary, size, sha256)
            finally:
                lock.release()
        except OSError as error:
            raise StorageError(
                f"the cache {self.folder} cannot be used: {error}", remedy="Give another cache"
            ) from None
        return path

    def remove(self, path: Path) -> None:
        """Forget a file that was found damaged."""
        path.unlink(missing_ok=True)

    def _hit(self, path: Path, size: int) -> bool:
        try:
            if path.stat().st_size != size:
                return False
            with suppress(PermissionError):  # another user's
                os.utime(path)  # it was used just now
        except FileNotFoundError:
            return False
        return True

    def _make_room(self, size: int, temporary: Path) -> None:
        """Remove the least recently used files until `size` bytes fit, and take them."""
        if size > self.maximum:
            raise StorageError(
                f"a file of {size / 2**30:.1f} GiB does not fit into the cache {self.folder}",
                remedy="Raise cache_gib",
            )
        end = time.monotonic() + remote.ATTEMPTS * remote.STALLED_SECONDS
        while True:
            with FileLock(self.folder / ".room.lock"):
                if self._room(size) or time.monotonic() > end:
                    with temporary.open("wb") as file:
                        file.truncate(size)  # others count it
                    return
            time.sleep(0.05)

    def _room(self, size: int) -> bool:
        """Remove what is old until `size` bytes fit; whether they do."""
        files, total = [], size
        for path, found in self._files():
            if path.suffix == ".tmp" and time.time() - found.st_mtime > _STALE_SECONDS:
                path.unlink(missing_ok=True)  # of a process that was killed
                continue
            total += found.st_size
            if not path.name.startswith("."):
                files.append((found.st_mtime, found.st_size, path))
        for _, held, path in sorted(files):
            if total <= self.maximum:
                break
            path.unlink(missing_ok=True)
            total -= held
        return total <= self.maximum

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """All files of the cache; looked at again where one got its final name meanwhile."""
        while True:
            try:
                paths = [path for path in self.folder.iterdir() if _OURS.match(path.name)]
                return [(path, path.stat()) for path in paths if path.suffix != ".lock"]
            except FileNotFoundError:
                continue


def _download(url: str, path: Path, size: int, sha256: str) -> None:
    for _ in range(2):  # a byte may have changed on its way
        hasher, got = hashlib.sha256(), 0
        with path.open("r+b") as file:
            for chunk in _chunks(url, size):
                hasher.update(chunk)
                file.write(chunk)
                got += len(chunk)
            file.truncate(got)
        if got == size and hasher.hexdigest() == sha256:
            return
    what = f"has {got} bytes, not {size} as" if got != size else "has another SHA-256 than"
    raise DataError(
        f"{url} {what} its manifest says", remedy="It was changed or cut off: pack or copy it again"
    )


def _chunks(url: str, size: int) -> Iterator[bytes]:
    at = 0
    while at < size:
        end = min(at + _CHUNK, size)
        try:
            chunk = remote.read_url(url, at, end)
        except FileNotFoundError:
            raise DataError(f"{url} is missing", remedy="Copy or pack it again") from None
        yield chunk
        if len(chunk) != end - at:
            return  # the file is shorter, or the server sent all of it at once
        at = end
