"""The one commit protocol: temporary name, fsync, manifest with digests, rename.

A file or folder under its final name is whole. A folder counts as done when its `manifest.json`
exists, and by no other sign.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from avvp_dist.errors import DataError, StorageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MANIFEST = "manifest.json"

Described = Mapping[str, int | str]
"""A file in a manifest: its `bytes` and its `sha256`."""


def sha256(content: Path | bytes) -> str:
    """Hex SHA-256 of a file's content, or of bytes."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    hasher, block = hashlib.sha256(), memoryview(bytearray(1 << 20))  # a core's cache holds it
    with content.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            hasher.update(block[:count])
    return hasher.hexdigest()


def check_sha256(name: str | Path, actual: str, expected: str, remedy: str = "") -> None:
    """Compare the SHA-256 of the file `name` with the one that its manifest records.

    Raises:
        DataError: naming the file, if they differ.
    """
    if actual != expected:
        raise DataError(f"{name} has another SHA-256 than its manifest says", remedy=remedy)


def digest(value: object) -> str:
    """Hex SHA-256 of a plain value's canonical JSON."""
    return sha256(json.dumps(value, sort_keys=True).encode())


def folder_digest(folder: Path) -> str:
    """Hex SHA-256 of the names and contents of a folder's files, without its subfolders."""
    return digest({path.name: sha256(path) for path in folder.iterdir() if path.is_file()})


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it is synced and renamed to `path`, else removed.

    The temporary name is unique across processes and hosts.

    Raises:
        StorageError: when the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"no space left for {path}",
                remedy="Free some, or choose another folder; what was finished before is kept",
            ) from None
        raise
    finally:
        with suppress(OSError):  # the first error says what is wrong
            temporary.unlink()


def json_text(value: object) -> str:
    """Text of a JSON file as it is written here."""
    return json.dumps(value, indent=1) + "\n"


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON under `path`, whole or not at all."""
    with staged(path) as temporary:
        temporary.write_text(json_text(value))


def files_in(folder: Path) -> list[Path]:
    """All files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def described(folder: Path, files: list[Path]) -> dict[str, Described]:
    """Sync finished files of a folder; returns their manifest entries by name."""
    entries: dict[str, Described] = {}
    for file in files:
        _sync(file)
        name = file.relative_to(folder).as_posix()
        entries[name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    return entries


class HashingFile(io.BufferedWriter):
    """A new file that is hashed while it is written.

    Args:
        given_up: once it is set, writing fails with an `OSError`.
    """

    def __init__(self, path: Path, given_up: threading.Event) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self._hash, self._given_up = hashlib.sha256(), given_up

    def write(self, data: ReadableBuffer) -> int:
        if self._given_up.is_set():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED), str(self.name))
        self._hash.update(data)
        return super().write(data)

    def finish(self) -> Described:
        """Sync what was written; returns the manifest entry of the file."""
        self.flush()
        os.fsync(self.fileno())
        return {"bytes": self.tell(), "sha256": self._hash.hexdigest()}


def commit_folder(
    temporary: Path,
    final: Path,
    meta: Mapping[str, object],
    files: Mapping[str, Described] | None = None,
) -> None:
    """Turn a folder of finished files into `final`, with a manifest of sizes and digests.

    An older folder under the same name is replaced.

    Args:
        meta: further entries of the manifest.
        files: `described` of all files, if several processes have divided that work.
    """
    files = described(temporary, files_in(temporary)) if files is None else files
    write_json(temporary / MANIFEST, {**meta, "files": dict(sorted(files.items()))})
    aside = final.with_name(f".{final.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        final.replace(aside)
    temporary.replace(final)
    _sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def verify_folder(folder: Path, rank: int = 0, size: int = 1) -> list[str]:
    """Faults of a committed folder, one line each; an empty list when it is whole.

    When `size` processes divide the work, each checks every `size`-th file from its `rank` on.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return [f"{path} is missing"]
    try:
        entries = json.loads(path.read_text())["files"].items()
        files = [(name, entry["bytes"], entry["sha256"]) for name, entry in sorted(entries)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{path} is not a manifest"]
    faults = []
    for name, length, expected in files[rank::size]:
        try:
            _check_file(folder / name, length, expected)
        except DataError as error:
            faults.append(str(error))
    return faults


def _check_file(file: Path, length: int, expected: str) -> None:
    if not file.is_file():
        raise DataError(f"{file} is missing")
    if file.stat().st_size != length:
        raise DataError(f"{file} has {file.stat().st_size} bytes, not {length}")
    check_sha256(file, sha256(file), expected)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
