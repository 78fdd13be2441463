"""Which clips are cut from videos that must stay unseen, told by their ids.

The same video goes by many names: `YTID_START_END` in seconds (LLP, with or without decimals) or
in milliseconds (AudioSet's lists), with or without `.mp4`. What counts is the video, whatever
part of it a clip is.

LLP's own held-out videos come with the package: `llp_heldout.npz` has a sorted uint64 array of
what `videos` gives for the 649 clips of `AVVP_val_pd.csv` and one for the 1,200 of
`AVVP_test_pd.csv` (https://github.com/YapengTian/AVVP-ECCV20), made by `fingerprints`. It holds
no ids, so it can be shipped, and a clip is known by it without LLP's files at hand.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.annotations.llp import WEAK_FILES
from avvp_dist.commit import sha256
from avvp_dist.errors import DataError
from avvp_dist.hashing import splitmix64

LLP = "llp"
"""Names the built-in list wherever one is asked for."""

_LLP_FILE = "llp_heldout.npz"
_CLIPS_AT_ONCE = 1 << 16
_NUMBER = rb"_\d+(?:\.\d+)?"
# Ids hold no NUL: it separates those of a block, so that one substitution does for all of them.
_CUT = re.compile(
    rb"(?<![^\0])([\w-]{11})" + 2 * _NUMBER + rb"(?:\.[A-Za-z]\w{1,4})?(?![^\0])", re.ASCII
)


@dataclass(frozen=True)
class Names:
    """Clips, or whole videos, that must not be trained on.

    `videos` is sorted uint64 `[V]`, `shown` bytes `[V]` what to call each of them; `ids` counts
    the names they came from and `sha256` is of the file or shard set these were read from.
    """

    name: str
    ids: int
    sha256: str
    videos: NDArray[np.uint64]
    shown: NDArray[np.bytes_]

    @classmethod
    def of(cls, name: str, ids: NDArray[np.bytes_], sha256: str) -> Names:
        """The names `ids [M]`, each called by itself."""
        found, first = np.unique(videos(ids), return_index=True)
        return cls(name, len(ids), sha256, found, ids[first])

    def find(self, of: NDArray[np.uint64]) -> NDArray[np.int64]:
        """For each video of `of [N]` its row in `videos`, or -1."""
        if not len(self.videos):
            return np.full(len(of), -1)
        rows = np.minimum(np.searchsorted(self.videos, of), len(self.videos) - 1)
        return np.where(self.videos[rows] == of, rows, -1)


def videos(ids: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """A fingerprint of the video that each of `ids [N]` is cut from, `[N]`.

    An id of the form `YTID_number_number`, a YTID being 11 letters, digits, `_` and `-`, stands
    for its YTID, any other id for itself as a whole.
    """
    found = np.empty(len(ids), np.uint64)
    for start in range(0, len(ids), _CLIPS_AT_ONCE):
        block = ids[start : start + _CLIPS_AT_ONCE]
        names = _CUT.sub(rb"\1", b"\0".join(block.tolist())).split(b"\0")
        found[start : start + len(block)] = _fingerprints(np.array(names, "S"))
    return found


def _fingerprints(names: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """A 64 bit hash of each of `names [N]`, whatever the width of the array."""
    width = -(-names.itemsize // 8) * 8
    words = np.ascontiguousarray(names.astype(f"S{width}")).view("<u8").reshape(len(names), -1)
    found = np.zeros(len(names), np.uint64)
    for word in words.T:
        found = np.where(word != 0, splitmix64(found ^ word), found)
    return found


def fingerprints(folder: Path) -> dict[str, NDArray[np.uint64]]:
    """What `llp_heldout.npz` holds, from LLP's csv files in `folder`: sorted `[V]` by split.

    Raises:
        DataError: for a file that is no list of names.
    """
    splits = ("val", "test")
    return {one: np.unique(videos(read_names(folder / WEAK_FILES[one]))) for one in splits}


def llp_file() -> Path:
    """The built-in list."""
    return Path(str(files("avvp_dist.annotations") / _LLP_FILE))


@cache
def llp_heldout() -> Names:
    """LLP's validation and test videos, called `llp val` and `llp test`."""
    with np.load(llp_file(), allow_pickle=False) as held:
        found = np.concatenate([held["val"], held["test"]])
        shown = np.repeat([b"llp val", b"llp test"], [len(held["val"]), len(held["test"])])
    order = np.argsort(found)
    return Names(LLP, len(found), sha256(llp_file()), found[order], shown[order])


def read_names(path: Path) -> NDArray[np.bytes_]:
    """The clips or videos that a list names, `[M]`.

    The list is a csv file, of the column `filename` where there is one (LLP) and else of its first
    (AudioSet), or a text file of one name a line.

    Raises:
        DataError: naming the file, if it is missing, no text, empty, or has another number of
            rows than its header counts, as a file that was cut off has.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text: a list of names is csv or txt") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    comments = [line for line in lines if line.startswith("#")]
    rows = [line for line in lines if line.strip() and not line.startswith("#")]
    named = list(_first_column(rows) if path.suffix == ".csv" else map(str.strip, rows))
    counted = re.search(r"num_segs=(\d+)", " ".join(comments))
    if counted and int(counted[1]) != len(named):
        raise DataError(
            f"{path} has {len(named)} rows, its header says {counted[1]}",
            remedy="It was cut off: fetch it again",
        )
    if not named or not all(named):
        raise DataError(f"{path} names no clips" if not named else f"{path}: a row has no name")
    return np.array([name.encode() for name in named], "S")


def _first_column(rows: list[str]) -> Iterator[str]:
    tabs = bool(rows) and "\t" in rows[0]
    reader = (
        csv.reader(rows, delimiter="\t", quoting=csv.QUOTE_NONE)
        if tabs
        else csv.reader(rows, skipinitialspace=True)
    )
    column = 0
    for number, row in enumerate(reader):
        if number == 0 and "filename" in row:
            column = row.index("filename")
        else:
            yield row[column] if column < len(row) else ""
