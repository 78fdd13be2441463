"""Lists of clips or videos by name: text files with a name per line, and tables of any columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.annotations.llp import WEAK_FILES
from avvp_dist.annotations.video_ids import videos
from avvp_dist.errors import DataError

SUFFIXES = (".csv", ".tsv", ".txt", ".lst", ".list")
"""Suffixes of files that are lists, in capitals too."""

_HEADERS = {"filename", "file", "name", "clip", "video", "url", "id", "vid", "ytid"}
_HEADERS |= {"video_id", "videoid", "youtube_id", "youtubeid", "clip_id", "file_name"}
_LINES_TO_JUDGE_BY = 1000


def read_names(path: Path) -> NDArray[np.bytes_]:
    """Names of clips or videos in a list, `[M]`.

    The list has one name per line, or it is a table whose columns end with a tab, `,`, `;` or `&`.
    The names of a table are in the column that holds most different video ids; if none does, in the
    column `filename` (LLP), or in the first one.

    Raises:
        DataError: naming the file, if it is missing, no text, empty, or cut off: then it has
            another number of rows than its header says.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(
            f"{path} is no text in UTF-8", remedy="Give a list of names as txt, csv or tsv in UTF-8"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    comments = [line for line in lines if line.startswith("#")]
    rows = [line for line in lines if line.strip() and not line.startswith("#")]
    named = list(_names(rows))
    counted = re.search(r"num_segs=(\d+)", " ".join(comments))
    if counted and int(counted[1]) != len(named):
        raise DataError(
            f"{path} has {len(named)} rows, its header says {counted[1]}",
            remedy="It was cut off: fetch it again",
        )
    if not named or not all(named):
        raise DataError(f"{path} names no clips" if not named else f"{path}: a row has no name")
    return np.array([name.encode() for name in named], "S")


def fingerprints(folder: Path) -> dict[str, NDArray[np.uint64]]:
    """Content of `llp_heldout.npz`, made from LLP's csv files in `folder`: sorted `[V]` by split.

    Raises:
        DataError: for a file that is no list of names.
    """
    splits = ("val", "test")
    return {
        one: np.unique(videos(read_names(folder / WEAK_FILES[one])).fingerprints) for one in splits
    }


def _names(lines: Sequence[str]) -> Iterator[str]:
    """The names of a list, without its header."""
    separator, column = _column(lines[:_LINES_TO_JUDGE_BY])
    for number, cells in enumerate(_table(lines, separator)):
        name = cells[column].strip() if column < len(cells) else ""
        if number > 0 or name.lower() not in _HEADERS:
            yield name


def _column(lines: Sequence[str]) -> tuple[str, int]:
    """Separator and number of the column that holds the names; no separator: whole lines."""
    best, best_score = None, (0, False)
    for separator in ("", "\t", ",", ";", "&"):
        table = list(_table(lines, separator))
        for column in range(max(map(len, table), default=0)):
            cells = sorted({row[column].strip() for row in table if column < len(row)})
            read = videos(np.array([cell.encode() for cell in cells], "S")).read
            # Classes of eleven letters look like ids, but they are few.
            named = any(cell.strip().lower() in _HEADERS for cell in table[0][column : column + 1])
            score = (int(read.sum()), named)
            if score[0] > 0 and score > best_score:
                best, best_score = (separator, column), score
    if best is not None:
        return best
    for separator in ("\t", ",", ";", "&"):
        for header in islice(_table(lines, separator), 1):
            if len(header) > 1:
                return separator, header.index("filename") if "filename" in header else 0
    return "", 0


def _table(lines: Iterable[str], separator: str) -> Iterator[list[str]]:
    if not separator:
        yield from ([line] for line in lines)
    elif separator in ",;":
        yield from csv.reader(lines, delimiter=separator, skipinitialspace=True)
    else:
        yield from csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE)
