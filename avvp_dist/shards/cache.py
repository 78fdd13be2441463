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

from avvp_dist.commit import check_sha256, staged
from avvp_dist.errors import DataError, StorageError
from avvp_dist.shards import remote

_CHUNK = 16 << 20
_REMEDY = "It was changed or cut off: pack or copy it again"
_STALE_SECONDS = 600.0
"""Age after which a temporary file that does not grow belongs to a process that was killed."""
_OURS = re.compile(r"\.?[0-9a-f]{24}-")


class Cache:
    """A folder of fetched files of up to `maximum` bytes; the least recently used are removed.

    A file is named by its full URL and its SHA-256. It appears under that name whole and verified
    or not at all, even if several processes fetch it at once. A lock spares the second fetch.
    """

    def __init__(self, folder: Path, maximum: int) -> None:
        self.folder, self.maximum = folder, maximum

    def fetch(self, url: str, size: int, sha256: str) -> Path:
        """Local file with the content of `url`, fetched if it is not there.

        A file that is removed for others stays readable for those that have opened it.

        Args:
            url: URL of the file.
            size: bytes of the file, as its manifest says.
            sha256: hex SHA-256 of the file, as its manifest says.

        Raises:
            DataError: naming the URL, if it is missing or not the manifest's.
            StorageError: naming the URL, if it cannot be read now, or the folder, if it is full.
        """
        name = hashlib.sha256(f"{url}\n{sha256}".encode()).hexdigest()[:24]
        path = self.folder / f"{name}-{url.rpartition('/')[2]}"
        try:
            if self._hit(path, size):
                return path
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / f".{path.name}.lock")
            # The process that fetches may stall. Stalls must not add up over those that wait.
            with suppress(Timeout):
                lock.acquire(timeout=remote.ATTEMPTS * remote.STALLED_SECONDS)
            try:
                if not self._hit(path, size):
                    with staged(path) as temporary:
                        self._reserve(size, temporary)
                        _download(url, temporary, size, sha256)
            finally:
                lock.release()
        except OSError as error:
            raise StorageError(
                f"the cache {self.folder} cannot be used: {error}", remedy="Give another cache"
            ) from None
        return path

    def remove(self, path: Path) -> None:
        """Remove a file that turned out to be damaged."""
        path.unlink(missing_ok=True)

    def _hit(self, path: Path, size: int) -> bool:
        try:
            if path.stat().st_size != size:
                return False
            with suppress(PermissionError):  # another user's
                os.utime(path)  # mark it as used
        except FileNotFoundError:
            return False
        return True

    def _reserve(self, size: int, temporary: Path) -> None:
        """Remove the least recently used files until `size` bytes fit, and reserve these."""
        if size > self.maximum:
            raise StorageError(
                f"a file of {size / 2**30:.1f} GiB does not fit into the cache {self.folder}",
                remedy="Raise cache_gib",
            )
        end = time.monotonic() + remote.ATTEMPTS * remote.STALLED_SECONDS
        while True:
            with FileLock(self.folder / ".reserve.lock"):
                if self._free(size) or time.monotonic() > end:
                    with temporary.open("wb") as file:
                        file.truncate(size)  # other processes count it from now on
                    return
            time.sleep(0.05)

    def _free(self, size: int) -> bool:
        """Remove the least recently used files until `size` bytes fit; returns whether they do."""
        files, total = [], size
        for path, stat in self._files():
            if path.suffix == ".tmp" and time.time() - stat.st_mtime > _STALE_SECONDS:
                path.unlink(missing_ok=True)
                continue
            total += stat.st_size
            if not path.name.startswith("."):
                files.append((stat.st_mtime, stat.st_size, path))
        for _, held, path in sorted(files):
            if total <= self.maximum:
                break
            path.unlink(missing_ok=True)
            total -= held
        return total <= self.maximum

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """All files of the cache; listed again if one got its final name meanwhile."""
        while True:
            try:
                paths = [path for path in self.folder.iterdir() if _OURS.match(path.name)]
                return [(path, path.stat()) for path in paths if path.suffix != ".lock"]
            except FileNotFoundError:
                continue


def _download(url: str, path: Path, size: int, sha256: str) -> None:
    """Fetch `url` into a file, a second time if a byte changed on its way."""
    for last in (False, True):
        hasher, received = hashlib.sha256(), 0
        with path.open("r+b") as file:
            for chunk in _chunks(url, size):
                hasher.update(chunk)
                file.write(chunk)
                received += len(chunk)
            file.truncate(received)
        try:
            if received != size:
                message = f"{url} has {received} bytes, not {size} as its manifest says"
                raise DataError(message, remedy=_REMEDY)
            check_sha256(url, hasher.hexdigest(), sha256, _REMEDY)
            return
        except DataError:
            if last:
                raise


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
            return  # the file is shorter, or the server ignored the range and sent all of it
        at = end
