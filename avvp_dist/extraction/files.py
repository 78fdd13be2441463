"""Media files by their ids: those of a folder, or of a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avvp_dist.errors import DataError

ENDINGS = (
    *(".mp4", ".mkv", ".webm", ".mov", ".avi", ".ts", ".m4v", ".3gp", ".flv", ".mpg", ".gif"),
    *(".flac", ".wav", ".mp3", ".ogg", ".m4a", ".opus", ".aac"),
)
"""Endings of the files of a folder that are taken for media."""
_VIDEO = 11
"""Letters of a YouTube id."""
LISTS = (".txt", ".lst", ".csv", ".tsv")
"""Endings of lists of paths."""


@dataclass(frozen=True)
class MediaItem:
    """A media file that is to be described."""

    id: str
    path: str
    labels: tuple[str, ...] | None = None
    other: str = ""
    """Path of a file before it that has the same id: then this one is left out."""


def media_files(source: Path) -> list[Path]:
    """The media files of a folder and of those in it, in order; or those that a list names.

    A list has one path a line, from its own folder. In a table the paths are in the first column.

    Raises:
        DataError: if there are none, or the list cannot be read.
    """
    if source.is_dir():
        found = sorted(
            path
            for path in source.rglob("*")
            if path.suffix.lower() in ENDINGS and not path.name.startswith("._")
        )
        if not found:
            raise DataError(f"{source} holds no media files", remedy=f"Known: {' '.join(ENDINGS)}")
        return found
    if source.suffix.lower() not in LISTS:
        raise DataError(f"source={source} is no folder and no list ({' '.join(LISTS)})")
    try:
        lines = source.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source} cannot be read: {error}") from None
    separator = {".csv": ",", ".tsv": "\t"}.get(source.suffix.lower(), "\0")
    names = [line.split(separator)[0].strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{source} names no files")
    return [source.parent / Path(name).expanduser() for name in names]


def media_items(source: Path, labels: Mapping[str, Sequence[str] | None] | None) -> list[MediaItem]:
    """The files that are to be described, each as a clip of its own or several.

    Args:
        source: a folder or a list, see `media_files`.
        labels: weak labels by clip; their clips alone are taken, in their order. A file may have
            the clip's name, or the eleven letters of its video. None: all files, without labels.
    """
    paths = media_files(source)
    if labels is None:
        return _unlabelled(paths)
    files: dict[str, Path] = {}
    for path in paths:
        files.setdefault(media_id(path), path)
    folder = source if source.is_dir() else source.parent
    return [
        MediaItem(
            clip,
            str((files.get(clip) or files.get(clip[:_VIDEO]) or folder / clip).absolute()),
            None if words is None else tuple(words),
        )
        for clip, words in labels.items()
    ]


def _unlabelled(paths: Sequence[Path]) -> list[MediaItem]:
    items, first = [], dict[str, str]()
    for path in paths:
        name, place = media_id(path), str(path.absolute())
        items.append(MediaItem(name, place, None, first.get(name, "")))
        first.setdefault(name, place)
    return items


def media_id(path: Path) -> str:
    """The file's name without its ending, if that is one of media; it may hold other dots."""
    return path.stem if path.suffix.lower() in ENDINGS else path.name


def windows(seconds: int, window: int, long: str) -> Sequence[tuple[int, int]]:
    """Start and end of each clip of a file, in seconds.

    Args:
        seconds: length of the file.
        window: T, length of a clip; the last one may be shorter.
        long: `windows`: all of them; `first`: the first one.
    """
    starts = range(0, seconds, window) if long == "windows" else [0]
    return [(start, min(start + window, seconds)) for start in starts]
