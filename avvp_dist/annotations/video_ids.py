"""Video ids: which clips are cut from videos that must not be trained on.

One video has many names: `YTID_START_END` in seconds (LLP) or in milliseconds (AudioSet's lists),
`YTID_START` (VGGSound), `YYTID.wav` (AudioSet's sound files), an address of YouTube, a path. Two
clips match if they are cut from one video, whichever part of it they show.

LLP's own held-out videos come with the package. `llp_heldout.npz` has one sorted uint64 array of
the `videos` of the 649 clips of `AVVP_val_pd.csv` and one of the 1,200 of `AVVP_test_pd.csv`
(https://github.com/YapengTian/AVVP-ECCV20), made by `fingerprints`. It holds no ids, so it can be
shipped, and LLP's files are not needed to recognise a clip.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import sha256
from avvp_dist.hashing import splitmix64

LLP = "llp"
"""Name of the built-in list, wherever a list is asked for."""

_LLP_FILE = "llp_heldout.npz"
_CLIPS_AT_ONCE = 1 << 16
# Ids hold no NUL. It separates the names of a block, so that one substitution handles all of them.
_START, _END = rb"(?<![^\0])", rb"(?![^\0])"
_SPACE = rb"(?:\s|\xef\xbb\xbf|\xc2\xa0)*"  # a byte order mark and no-break spaces too
_YTID = rb"([\w-]{11})"
# Two of `_` and `-` in a row are no separator: ids end with them too.
_TIME = rb"(?:[_-]|[ _-]?[ .,:;~+(\[]{1,2})t?\d+(?:[.,:]\d+)*(?:e[+-]?\d+)?(?:ms|s)?[)\]]?"
_SUFFIXES = rb"(?:\.(?:[A-Za-z]\w{0,7}|3g[p2]))*"
_VIDEO = re.compile(
    _START
    + _SPACE
    + rb"(?:b?['\"])?(?:"
    # A name, maybe at the end of a path or address, maybe with times.
    + rb"(?:[^\0]*[/\\])?(?:Y|v_|youtube[ :_-])??" + _YTID + rb"(?:" + _TIME + rb"){0,2}"
    + _SUFFIXES + rb"/?(?:[?#&][^\0]*?)?"
    # An address that names it among its keys.
    + rb"|(?:[^\0]*(?:[?&;]|%3F|%26))?v(?:=|%3D)" + _YTID + rb"(?![\w-])[^\0]*?"
    # A title with the id in brackets, as downloaders write it.
    + rb"|[^\0]*\[" + _YTID + rb"\]" + _SUFFIXES
    + rb")['\"]?"
    + _SPACE
    + _END
)  # fmt: skip
_OTHER = re.compile(
    _START + _SPACE + rb"([^\0]*?)(?:(?i:\.(?:mp4|mkv|webm|avi|mov|wav|flac|mp3|m4a|npy)))*"
    + _SPACE + _END
)  # fmt: skip
_MARK = b"\xff"
"""Byte before an id that `_VIDEO` has read: no UTF-8 text has it."""


@dataclass(frozen=True)
class Videos:
    """The videos that N names stand for."""

    fingerprints: NDArray[np.uint64]
    """64 bit hash of the video id, or of the whole name if it holds none, `[N]`."""
    read: NDArray[np.bool_]
    """Whether a name holds a YouTube video id, `[N]`."""

    def described(self, place: str) -> str:
        """How many of the names of a shard set or list hold a video id, for the user."""
        return described(place, int(self.read.sum()), len(self.read))


@dataclass(frozen=True)
class HeldOutVideos:
    """Videos that must not be trained on.

    `videos` is sorted uint64 `[V]`, `shown` bytes `[V]` a name of each for messages. `ids` is the
    number of clip or video names that they came from, `read` how many of these hold a video id.
    `sha256` is of the file or shard set that these were read from.
    """

    name: str
    ids: int
    read: int
    sha256: str
    videos: NDArray[np.uint64]
    shown: NDArray[np.bytes_]

    @classmethod
    def of(cls, name: str, ids: NDArray[np.bytes_], sha256: str) -> HeldOutVideos:
        """Videos of the clips `ids [M]`, each shown as its first clip."""
        named = videos(ids)
        unique, first = np.unique(named.fingerprints, return_index=True)
        return cls(name, len(ids), int(named.read.sum()), sha256, unique, ids[first])

    def find(self, others: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Row in `videos` of each of the videos `others [N]`, or -1."""
        if not len(self.videos):
            return np.full(len(others), -1)
        rows = np.minimum(np.searchsorted(self.videos, others), len(self.videos) - 1)
        return np.where(self.videos[rows] == others, rows, -1)


def described(place: str, read: int, names: int) -> str:
    """How many names of a shard set or list hold a video id, for the user."""
    return f"{place}: {read:,} of {names:,} names hold a video id"


def videos(ids: NDArray[np.bytes_]) -> Videos:
    """The video that each of the names `ids [N]` stands for: of a clip, a video, or a file.

    A YouTube video id is 11 letters, digits, `_` and `-`. Around it a name may have white space,
    a folder or an address, `v=`, the `Y` of AudioSet's sound files, one or two times, and suffixes
    of files. Any other name stands for itself, without white space and the suffix of a medium.
    """
    fingerprints, read = np.empty(len(ids), np.uint64), np.empty(len(ids), bool)
    for start in range(0, len(ids), _CLIPS_AT_ONCE):
        block = ids[start : start + _CLIPS_AT_ONCE]
        text = _VIDEO.sub(_MARK + rb"\1\2\3", b"\0".join(block.tolist()))
        known = [name.startswith(_MARK) for name in text.split(b"\0")]
        if not all(known):
            text = _OTHER.sub(rb"\1", text)
        names = text.replace(_MARK, b"").split(b"\0")
        fingerprints[start : start + len(block)] = _hashes(np.array(names, "S"))
        read[start : start + len(block)] = known
    return Videos(fingerprints, read)


def _hashes(names: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """64 bit hash of each of `names [N]`, which does not depend on the width of the array."""
    width = -(-names.itemsize // 8) * 8
    words = np.ascontiguousarray(names.astype(f"S{width}")).view("<u8").reshape(len(names), -1)
    hashes = np.zeros(len(names), np.uint64)
    for word in words.T:
        hashes = np.where(word != 0, splitmix64(hashes ^ word), hashes)
    return hashes


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
    return HeldOutVideos(LLP, len(both), len(both), sha256(llp_file()), both[order], shown[order])
