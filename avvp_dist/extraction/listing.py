"""Files that `source=` names: media and tars, on disks and at URLs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from glob import has_magic
from pathlib import Path

from avvp_dist.errors import DataError
from avvp_dist.extraction.files import (
    ENDINGS,
    LISTS,
    TAR,
    ending_of,
    media_files,
    names_in,
    read_list,
)
from avvp_dist.packing.sources import SourceFile
from avvp_dist.shards.indexing import tars_in
from avvp_dist.shards.remote import RemoteFile, find_url, is_url, read_url, stat_url

_REQUESTS = 16
"""Requests at once for the sizes of tars."""


def source_files(source: str) -> list[SourceFile]:
    """Media files and tars in order, each once, without a look into them.

    Args:
        source: a folder, which is searched with those in it; a list; a tar; the URL of one of
            these; or several of them in braces or by a pattern, as in `DIR/a-{000..127}.tar`.

    Raises:
        DataError: if there are none, or they cannot be listed.
    """
    found: list[SourceFile] = []
    for name in expand(source):
        found += _at_url(name) if is_url(name) else _on_disk(name)
    return _with_sizes(list(dict.fromkeys(found)))


def expand(text: str) -> list[str]:
    """All texts that braces stand for, as in a shell: `{a,b}`, `{08..11}`."""
    match = re.search(r"\{([^{}]*)\}", text)
    if not match:
        return [text]
    before, inner, after = text[: match.start()], match[1], text[match.end() :]
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = span.groups()
        width = len(first) if first.startswith("0") else 0
        parts = [f"{n:0{width}d}" for n in range(int(first), int(last) + 1)]
    elif "," in inner:
        parts = inner.split(",")
    else:
        return [f"{before}{{{inner}}}{rest}" for rest in expand(after)]
    if not parts:
        raise DataError(
            f"source={text}: {{{inner}}} is empty", remedy="Write the smaller one first"
        )
    return [one for part in parts for one in expand(f"{before}{part}{after}")]


def _on_disk(name: str) -> list[SourceFile]:
    path = Path(name).expanduser()
    if path.is_dir():
        # Tars beside media are most often their archives.
        return [*(media_files(path, none=True) or tars_in(path) or media_files(path))]
    if ending_of(name) in LISTS and path.is_file():
        return [_named(one, path.parent) for one in read_list(path)]
    if not path.exists() and has_magic(name):
        found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        if not found:
            raise DataError(f"source={name} matches no file")
        return [one for one in found if ending_of(one.name) in (TAR, *ENDINGS)]
    if ending_of(name) == TAR:
        if not path.exists():
            raise DataError(f"{path} is missing", remedy="Check source=")
        return [path]
    return [*media_files(path)]  # it says what is wrong


def _at_url(url: str) -> list[SourceFile]:
    ending = ending_of(url)
    if ending in (TAR, *ENDINGS):
        return [RemoteFile(url)]
    if ending in LISTS:
        try:
            text = read_url(url).decode("utf-8-sig")
        except (FileNotFoundError, UnicodeDecodeError) as error:
            raise DataError(f"{url} cannot be read: {type(error).__name__}") from None
        return [_named(one, url.rpartition("/")[0]) for one in names_in(text, url)]
    found = find_url(url)
    if found is None:
        raise DataError(
            f"source={url}: servers of HTTP do not list folders",
            remedy="Give a list of addresses, or name the tars: URL/a-{000..127}.tar",
        )
    media = [one for one in found if ending_of(one.url) in ENDINGS]
    tars = [one for one in found if ending_of(one.url) == TAR]
    if not media and not tars:
        raise DataError(f"{url} holds no media files and no tars")
    return [*(media or tars)]


def _named(name: str, folder: Path | str) -> SourceFile:
    if is_url(name):
        return RemoteFile(name)
    if isinstance(folder, str):
        return RemoteFile(f"{folder}/{name}")
    return folder / Path(name).expanduser()


def _with_sizes(files: Sequence[SourceFile]) -> list[SourceFile]:
    """The files; tars at URLs, whose ends must be known, with their sizes."""

    def look(file: SourceFile) -> SourceFile:
        if isinstance(file, Path) or ending_of(file.url) != TAR or file.bytes is not None:
            return file
        try:
            return replace(stat_url(file.url), url=file.url)
        except FileNotFoundError:
            raise DataError(f"{file.url} is missing", remedy="Check source=") from None

    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(look, files))
