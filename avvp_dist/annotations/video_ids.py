"""Video ids: which clips are cut from videos that must not be trained on.

One video has many names: `YTID_START_END` in seconds (LLP, with or without decimals) or in
milliseconds (AudioSet's lists), with or without `.mp4`. Two clips match if they are cut from one
video, whichever part of it they show.

LLP's own held-out videos come with the package. `llp_heldout.npz` has one sorted uint64 array of
the `videos` of the 649 clips of `AVVP_val_pd.csv` and one of the 1,200 of `AVVP_test_pd.csv`
(https://github.com/YapengTian/AVVP-ECCV20), made by `fingerprints`. It holds no ids, so it can be
shipped, and LLP's files are not needed to recognise a clip.
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
"""Name of the built-in list, wherever a list is asked for."""

_LLP_FILE = "llp_heldout.npz"
_CLIPS_AT_ONCE = 1 << 16
_NUMBER = rb"_\d+(?:\.\d+)?"
# Ids hold no NUL. It separates the ids of a block, so that one substitution handles all of them.
_CUT = re.compile(
    rb"(?<![^\0])([\w-]{11})" + 2 * _NUMBER + rb"(?:\.[A-Za-z]\w{1,4})?(?![^\0])", re.ASCII
)


@dataclass(frozen=True)
class HeldOutVideos:
    """Videos that must not be trained on.

    `videos` is sorted uint64 `[V]`, `shown` bytes `[V]` a name of each for messages. `ids` is the
    number of clip or video names that they came from. `sha256` is of the file or shard set that
    these were read from.
    """

    name: str
    ids: int
    sha256: str
    videos: NDArray[np.uint64]
    shown: NDArray[np.bytes_]

    @classmethod
    def of(cls, name: str, ids: NDArray[np.bytes_], sha256: str) -> HeldOutVideos:
        """Videos of the clips `ids [M]`, each shown as its first clip."""
        unique, first = np.unique(videos(ids), return_index=True)
        return cls(name, len(ids), sha256, unique, ids[first])

    def find(self, others: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Row in `videos` of each of the videos `others [N]`, or -1."""
        if not len(self.videos):
            return np.full(len(others), -1)
        rows = np.minimum(np.searchsorted(self.videos, others), len(self.videos) - 1)
        return np.where(self.videos[rows] == others, rows, -1)


def videos(ids: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """Fingerprint of the video that each of the clips `ids [N]` is cut from, `[N]`.

    An id of the form `YTID_number_number` stands for its YTID: 11 letters, digits, `_` and `-`.
    Any other id stands for itself as a whole.
    """
    fingerprints = np.empty(len(ids), np.uint64)
    for start in range(0, len(ids), _CLIPS_AT_ONCE):
        block = ids[start : start + _CLIPS_AT_ONCE]
        names = _CUT.sub(rb"\1", b"\0".join(block.tolist())).split(b"\0")
        fingerprints[start : start + len(block)] = _hashes(np.array(names, "S"))
    return fingerprints


def _hashes(names: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """64 bit hash of each of `names [N]`, which does not depend on the width of the array."""
    width = -(-names.itemsize // 8) * 8
    words = np.ascontiguousarray(names.astype(f"S{width}")).view("<u8").reshape(len(names), -1)
    hashes = np.zeros(len(names), np.uint64)
    for word in words.T:
        hashes = np.where(word != 0, splitmix64(hashes ^ word), hashes)
    return hashes


def fingerprints(folder: Path) -> dict[str, NDArray[np.uint64]]:
    """Content of `llp_heldout.npz`, made from LLP's csv files in `folder`: sorted `[V]` by split.

    Raises:
        DataError: for a file that is no list of names.
    """
    splits = ("val", "test")
    return {one: np.unique(videos(read_names(folder / WEAK_FILES[one]))) for one in splits}


def llp_file() -> Path:
    """File of the built-in list."""
    return Path(str(files("avvp_dist.annotations") / _LLP_FILE))


@cache
def llp_heldout() -> HeldOutVideos:
    """LLP's validation and test videos, shown as `llp val` and `llp test`."""
    with np.load(llp_file(), allow_pickle=False) as held:
        both = np.concatenate([held["val"], held["test"]])
        shown = np.repeat([b"llp val", b"llp test"], [len(held["val"]), len(held["test"])])
    order = np.argsort(both)
    return HeldOutVideos(LLP, len(both), sha256(llp_file()), both[order], shown[order])


def read_names(path: Path) -> NDArray[np.bytes_]:
    """Names of clips or videos in a list, `[M]`.

    The list is a text file with one name per line, or a csv file. The names of a csv file are in
    its column `filename` (LLP), or in the first column if it has none (AudioSet).

    Raises:
        DataError: naming the file, if it is missing, no text, empty, or cut off: then it has
            another number of rows than its header says.
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
