"""Media by their ids: files of a folder or a list, and what is done with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from avvp_dist.errors import DataError
from avvp_dist.extraction.places import Place
from avvp_dist.features.media import Bounds, FilePair, MediaError, MediaFile, Reason
from avvp_dist.packing.sources import Labels, SourceFile
from avvp_dist.shards.remote import RemoteFile

VIDEO = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".ts", ".m4v", ".3gp", ".flv", ".mpg", ".gif")
"""Endings of media that have pictures."""
SOUND = (".flac", ".wav", ".mp3", ".ogg", ".m4a", ".opus", ".aac")
"""Endings of media that have sound alone."""
ENDINGS = (*VIDEO, *SOUND)
"""Endings of the files of a folder that are taken for media."""
LISTS = (".txt", ".lst", ".csv", ".tsv")
"""Endings of lists of paths."""
TAR = ".tar"
_WINDOW_ID = re.compile(r"(.+)_\d+_\d+")
_VIDEO_ID = 11
"""Letters of a YouTube id."""


@dataclass(frozen=True, slots=True)
class MediaItem:
    """Media that are to be described: a file, or a sample of a tar; or a part of one."""

    id: str
    path: str
    """Name in messages and in the ledger: its path or URL, or `TAR#MEMBER`."""
    labels: Labels = None
    other: str = ""
    """Path of an item before it that has the same id: then this one is left out."""
    taken: tuple[str, ...] = ()
    """Ids of other items that windows of this one might have too."""
    places: tuple[Place, ...] = ()
    """Where its bytes are: of pictures, then of sound if that is another file. Empty: at `path`."""
    span: tuple[float, float] | None = None
    """Start and end of the part that is described, in seconds; None: all of it."""
    fault: tuple[str, str] | None = None
    """Reason why it cannot be used, and a sentence; None for media that may be read."""

    @property
    def name(self) -> str:
        """Its id without the folder that a tar puts it into."""
        return self.id.rpartition("/")[2]

    @property
    def opened_places(self) -> tuple[Place, ...]:
        """Where its bytes are."""
        return self.places or (Place(self.path),)

    def open(self, bounds: Bounds) -> MediaFile:
        """Media as they are decoded.

        Raises:
            MediaError: if it cannot be used.
            StorageError: if its server cannot be read.
        """
        if self.fault:
            raise MediaError(Reason(self.fault[0]), f"{self.path}: {self.fault[1]}")
        first, *rest = (place.open(self.path, bounds) for place in self.opened_places)
        return FilePair(first, rest[0]) if rest else first


def media_files(source: Path, *, none: bool = False) -> list[Path]:
    """The media files of a folder and of those in it, in order; or those that a list names.

    A list has one path a line, from its own folder. In a table the paths are in the first column.

    Args:
        none: whether a folder may hold none.

    Raises:
        DataError: if there are none, or the list cannot be read.
    """
    if source.is_dir():
        found = sorted(
            path
            for path in source.rglob("*")
            if path.suffix.lower() in ENDINGS and not path.name.startswith("._")
        )
        if not found and not none:
            raise DataError(f"{source} holds no media files", remedy=f"Known: {' '.join(ENDINGS)}")
        return found
    if source.suffix.lower() not in LISTS:
        raise DataError(f"source={source} is no folder, no tar and no list ({' '.join(LISTS)})")
    return [source.parent / Path(name).expanduser() for name in read_list(source)]


def read_list(path: Path) -> list[str]:
    """Paths and URLs that a list names, one a line, or in the first column of a table.

    Raises:
        DataError: if there are none, or it cannot be read.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    return names_in(text, str(path))


def names_in(text: str, path: str) -> list[str]:
    """Paths and URLs in the text of the list `path`; see `read_list`."""
    separator = {".csv": ",", ".tsv": "\t"}.get(ending_of(path), "\0")
    names = [line.split(separator)[0].strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path} names no files")
    return names


def item_of(file: SourceFile) -> MediaItem:
    """A media file as an item."""
    if isinstance(file, RemoteFile):
        name = PurePosixPath(_path_of(file.url)).name
        place = Place(file.url, 0, file.bytes, file.version)
        return MediaItem(media_id(Path(name)), file.url, places=(place,))
    return MediaItem(media_id(file), str(file.absolute()))


def media_items(
    items: Sequence[MediaItem], labels: Mapping[str, Sequence[str] | None] | None
) -> list[MediaItem]:
    """The items that are to be described, each as a clip of its own or several.

    Args:
        labels: weak labels by clip; their clips alone are taken, in their order. An item may have
            the clip's name, or the eleven letters of its video. None: all items, with their own
            labels.
    """
    if labels is None:
        return _marked(items)
    named: dict[str, MediaItem] = {}
    for item in items:
        named.setdefault(item.name, item)
    chosen = []
    for clip, words in labels.items():
        found = named.get(clip) or named.get(clip[:_VIDEO_ID]) or _missing(clip)
        given = None if words is None else tuple(words)
        chosen.append(replace(found, id=clip, labels=given))
    return chosen


def _missing(clip: str) -> MediaItem:
    sentence = f"no file has this name, or the name {clip[:_VIDEO_ID]}"
    return MediaItem(clip, clip, fault=(Reason.MISSING.value, sentence))


def _marked(items: Sequence[MediaItem]) -> list[MediaItem]:
    """The items; `other` of each is the path of the first one that has its id."""
    first: dict[str, str] = {}
    marked = []
    for item in items:
        marked.append(replace(item, other=first.get(item.id, "")))
        first.setdefault(item.id, item.path)
    taken: dict[str, list[str]] = {}
    for name in first:
        if (window := _WINDOW_ID.fullmatch(name)) and window[1] in first:
            taken.setdefault(window[1], []).append(name)
    return [replace(one, taken=tuple(taken.get(one.id, ()))) for one in marked]


def media_id(path: Path) -> str:
    """The file's name without its ending, if that is one of media; it may hold other dots."""
    return path.stem if path.suffix.lower() in ENDINGS else path.name


def ending_of(name: str) -> str:
    """Ending of a path or a URL in small letters, with its dot."""
    return PurePosixPath(_path_of(name)).suffix.lower()


def _path_of(name: str) -> str:
    """Path of a URL of HTTP without its query, in plain letters; any other name as it is."""
    return unquote(urlsplit(name).path) if re.match("https?:", name) else name


def windows(seconds: int, window: int, long: str) -> Sequence[tuple[int, int]]:
    """Start and end of each clip of a file, in seconds.

    Args:
        seconds: length of the file.
        window: T, length of a clip; the last one may be shorter.
        long: `windows`: all of them; `first`: the first one.
    """
    starts = range(0, seconds, window) if long == "windows" else [0]
    return [(start, min(start + window, seconds)) for start in starts]
