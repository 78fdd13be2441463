"""Cuts: which part of a file is a clip, by its sample's JSON or by a table in AudioSet's form."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from avvp_dist.errors import DataError
from avvp_dist.extraction.files import MediaItem
from avvp_dist.features.media import Reason
from avvp_dist.packing.audioset import CLASSES, clip_name
from avvp_dist.packing.sources import Labels

NONE, JSON = "none", "json"
"""Values of `cut` that are no table."""


@dataclass(frozen=True)
class Cut:
    """A row of a table: a part of a file that is a clip."""

    file: str
    """Name of the file without its ending; in AudioSet's tables the id of the video."""
    start: float
    end: float
    labels: Labels

    @property
    def id(self) -> str:
        """Id of the clip, `FILE_START_END`."""
        return clip_name(self.file, self.start, self.end)


def cut_items(items: Sequence[MediaItem], cut: str) -> list[MediaItem]:
    """Items that are cut as `cut` says: `none`, `json` or the path of a table.

    Raises:
        DataError: if nothing can be cut, or the table is broken.
    """
    if cut == NONE:
        return [item if item.span is None else replace(item, span=None) for item in items]
    if cut != JSON:
        return _by_table(items, Path(cut))
    if items and not any(item.span for item in items):
        raise DataError(
            f"cut=json: no sample, first {items[0].path}, has a JSON with start and end in seconds"
        )
    fault = (Reason.UNSUPPORTED.value, "cut=json, and its JSON has no start and end in seconds")
    return [item if item.span or item.fault else replace(item, fault=fault) for item in items]


def _by_table(items: Sequence[MediaItem], table: Path) -> list[MediaItem]:
    """An item for each row whose file is there; the number of those left over is printed."""
    files: dict[str, list[MediaItem]] = {}
    for item in items:
        files.setdefault(item.name, []).append(item)
    cuts, rows = [], list(dict.fromkeys(read_cuts(table)))
    for row in rows:
        for item in files.get(row.file, ()):
            cuts.append(
                replace(
                    item,
                    id=row.id,
                    path=f"{item.path}#t={row.start:.10g},{row.end:.10g}",
                    places=item.opened_places,
                    labels=row.labels if item.labels is None else item.labels,
                    span=(row.start, row.end),
                )
            )
    named = {row.file for row in rows}
    alone, lacking = len(files.keys() - named), sum(row.file not in files for row in rows)
    if not cuts:
        raise DataError(
            f"{table}: none of its {len(rows)} rows names one of the {len(files)} files",
            remedy="A file is found by its name without the ending, as in the table's first column",
        )
    if alone or lacking:
        print(
            f"{table}: {lacking} of {len(rows)} rows have no file, and {alone} of {len(files)} "
            "files no row: they are left out"
        )
    return cuts


def read_cuts(table: Path) -> Iterator[Cut]:
    """Rows `FILE, start, end, "label,label"` in seconds, without comments and a header.

    Labels may be missing. Machine ids are replaced by AudioSet's display names if its table of
    classes is beside the file.

    Raises:
        DataError: naming the table, and the row that is broken.
    """
    names = _display_names(table.parent / CLASSES)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            lines = (line for line in file if not line.startswith("#"))
            for number, row in enumerate(csv.reader(lines, skipinitialspace=True), 1):
                if not row or (number == 1 and len(row) > 1 and not _is_time(row[1])):
                    continue
                yield _cut(table, row, names)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cut: {table} cannot be read: {error}") from None


def _is_time(text: str) -> bool:
    try:
        return 0 <= float(text) < inf
    except ValueError:
        return False


def _cut(table: Path, row: list[str], names: dict[str, str]) -> Cut:
    if len(row) < 3 or not (
        _is_time(row[1]) and _is_time(row[2]) and float(row[1]) < float(row[2])
    ):
        raise DataError(
            f"cut: {table}: {','.join(row)!r} is no row FILE, start, end in seconds",
            remedy="The form is that of AudioSet's tables of segments",
        )
    words = [word.strip() for word in row[3].split(",")] if len(row) > 3 else []
    labels = tuple(names.get(word, word) for word in words if word)
    return Cut(row[0].strip(), float(row[1]), float(row[2]), labels or None)


def _display_names(path: Path) -> dict[str, str]:
    """Display name of each machine id; empty if the table of classes is not there."""
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {row["mid"]: row["display_name"] for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise DataError(f"{path} is no table of classes: {error!r}") from None
