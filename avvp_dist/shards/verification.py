"""A shard as its manifest has it, and whether a file is that shard."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

from avvp_dist.commit import sha256
from avvp_dist.errors import DataError

REMEDY = "It was cut off or changed: copy it again, or pack the shard set again"


@dataclass(frozen=True)
class Shard:
    """One tar of a shard set, as its manifest has it."""

    name: str
    clips: int
    bytes: int
    sha256: str

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".tar")


def check_size(shard: Shard, path: Path) -> None:
    """Raise `DataError` if the file at `path` is missing or has another size."""
    try:
        found = path.stat().st_size
    except OSError:
        raise DataError(
            f"shard {path} is missing", remedy="Copy it again, or pack the shard set again"
        ) from None
    if found != shard.bytes:
        raise DataError(
            f"shard {path} has {found} bytes, its manifest says {shard.bytes}", remedy=REMEDY
        )


def verify(shard: Shard, path: Path, mode: str) -> None:
    """Raise `DataError` unless the file has the shard's SHA-256 (`mode` "sha256") or at least
    begins like a tar ("size")."""
    if mode == "sha256":
        if sha256(path) != shard.sha256:
            raise DataError(
                f"shard {path} has another SHA-256 than its manifest says", remedy=REMEDY
            )
        return
    with path.open("rb") as file:
        header = file.read(tarfile.BLOCKSIZE)
    try:
        tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise DataError(f"shard {path} is no tar: {error}", remedy=REMEDY) from None
