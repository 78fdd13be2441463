"""Checks of a shard's file against the manifest, and what happens with clips that fail them."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from avvp_dist.commit import check_sha256, sha256
from avvp_dist.errors import DataError
from avvp_dist.shards.manifest import Shard

REMEDY = "It was cut off or changed: copy it again, or pack the shard set again"

OnBad = Callable[[Iterable[int], DataError], None]
"""Called with the numbers of clips that cannot be read and the reason; it may raise."""


def raise_on_bad(clips: Iterable[int], error: DataError) -> None:
    """Raise on the first bad clip."""
    raise error


def ignore_bad(clips: Iterable[int], error: DataError) -> None:
    """Go on without the bad clips; the caller counts them by the mask that reading returns."""


def check_size(shard: Shard, path: Path) -> None:
    """Raise `DataError` if the file at `path` is missing or of another size than the shard."""
    try:
        size = path.stat().st_size
    except OSError:
        raise DataError(
            f"shard {path} is missing", remedy="Copy it again, or pack the shard set again"
        ) from None
    if size != shard.bytes:
        raise DataError(
            f"shard {path} has {size} bytes, its manifest says {shard.bytes}", remedy=REMEDY
        )


def verify(shard: Shard, path: Path, mode: str) -> None:
    """Check the content of the file at `path`.

    Args:
        mode: "sha256" hashes the whole file. "size" reads the first tar header alone.

    Raises:
        DataError: if the file has another SHA-256 than the shard, or does not begin like a tar.
    """
    if mode == "sha256":
        check_sha256(f"shard {path}", sha256(path), shard.sha256, REMEDY)
        return
    with path.open("rb") as file:
        header = file.read(tarfile.BLOCKSIZE)
    try:
        tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise DataError(f"shard {path} is no tar: {error}", remedy=REMEDY) from None
