"""Names as formats of lines can hold them: ids and classes may be any text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from avvp_dist.commit import sha256
from avvp_dist.shards.schema import encode_key

_BREAKS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]+")
"""Control characters, line breaks, and what neither UTF-8 nor XML has."""
_TAKEN = ("index", "manifest")
"""Stems of the files that every folder of timelines has."""
_LONGEST = 180
"""Characters of a stem; file systems allow 255 bytes with the suffix."""


def single_line(name: str) -> str:
    """The name on one line: a space for line breaks and control characters, none at its ends."""
    return _BREAKS.sub(" ", name).strip() or "unnamed"


def distinct_lines(names: Sequence[str]) -> tuple[str, ...]:
    """`single_line` of each name; those that would be equal get numbers."""
    lines: list[str] = []
    for line in map(single_line, names):
        number, unique = 1, line
        while unique in lines:
            number += 1
            unique = f"{line} ({number})"
        lines.append(unique)
    return tuple(lines)


def file_stem(clip_id: str) -> str:
    """Name of a clip's files without their suffix: the id where file names allow it.

    Other characters are encoded as in the keys of a shard set. A very long id is cut, and ends
    with a part of its SHA-256.
    """
    stem = encode_key(clip_id)
    if stem in _TAKEN:
        return f"={ord(stem[0]):02X}{stem[1:]}"
    return stem if len(stem) <= _LONGEST else f"{stem[:_LONGEST]}-{sha256(clip_id.encode())[:12]}"
