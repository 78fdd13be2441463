"""The one commit protocol: temporary name, fsync, manifest with digests, rename.

A file or folder under its final name is whole. A folder counts as done when its `manifest.json`
exists; nothing else does.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from avvp_dist.errors import StorageError

MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    hasher, block = hashlib.sha256(), memoryview(bytearray(1 << 20))  # a core's cache holds it
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            hasher.update(block[:count])
    return hasher.hexdigest()


def digest(value: Any) -> str:
    """Hex SHA-256 of a plain value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """Hex SHA-256 of the names and contents of a folder's files, without its subfolders."""
    return digest({path.name: sha256(path) for path in folder.iterdir() if path.is_file()})


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it is synced and renamed to `path`, else removed.

    The temporary name is nobody else's, on no host.

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


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON under `path`, whole or not at all."""
    with staged(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def files_in(folder: Path) -> list[Path]:
    """All files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def described(folder: Path, files: list[Path]) -> dict[str, dict[str, Any]]:
    """The manifest's entries of some finished files of a folder, which are synced."""
    entries = {}
    for file in files:
        _sync(file)
        name = file.relative_to(folder).as_posix()
        entries[name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    return entries


def commit_folder(
    temporary: Path,
    final: Path,
    meta: dict[str, Any],
    files: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Turn a folder of finished files into `final`, with a manifest of sizes and digests.

    An older folder under the same name is replaced.

    Args:
        files: `described` of all files, where several processes have shared that work.
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
    """What is wrong with a committed folder, one line each; an empty list when it is whole.

    Of several processes that share the work, each looks at every `size`-th file.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return [f"{path} is missing"]
    try:
        entries = json.loads(path.read_text())["files"].items()
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in sorted(entries)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{path} is not a manifest"]
    wrong = []
    for name, (length, sha) in list(files.items())[rank::size]:
        file = folder / name
        if not file.is_file():
            wrong.append(f"{file} is missing")
        elif file.stat().st_size != length:
            wrong.append(f"{file} has {file.stat().st_size} bytes, not {length}")
        elif sha256(file) != sha:
            wrong.append(f"{file} has another SHA-256 than its manifest says")
    return wrong


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
