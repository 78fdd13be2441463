"""A grounding on disk: component ids of every clip of a shard set, beside it."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import check_sha256, sha256
from avvp_dist.config.grounding import GROUPINGS
from avvp_dist.errors import DataError
from avvp_dist.shards.remote import is_url, read_url
from avvp_dist.shards.shard_set import ShardSet

GROUNDINGS = "grounding"
"""The folder in a shard set where its groundings lie."""
SUMMARY = "grounding.json"
"""Written when every shard is done; a grounding without it is not finished."""

_REMEDY = "Copy it again, or remove it and run avvp ground again"


class Grounding:
    """A finished grounding of `shards`; `place`, a folder or URL, may be empty when there is one.

    Raises:
        DataError: if there is none, more than one to choose from, or it is of other shards.
    """

    def __init__(self, shards: ShardSet, place: str | Path = "") -> None:
        self.place = str(place).rstrip("/") or str(_only_one(shards))
        try:
            self.summary: dict[str, Any] = json.loads(_bytes(f"{self.place}/{SUMMARY}"))
        except FileNotFoundError:
            raise DataError(
                f"{self.place}/{SUMMARY} is missing: no finished grounding",
                remedy="Run avvp ground (again: it goes on where it stopped)",
            ) from None
        if self.summary["manifest"] != shards.content:
            raise DataError(
                f"{self.place} was made for another shard set than {shards.name}",
                remedy="Run avvp ground on this one",
            )
        if "shards" not in self.summary:
            raise DataError(
                f"{self.place}/{SUMMARY} has no hashes of its labels: an older version made it",
                remedy="Run avvp ground again",
            )
        self.version: str = self.summary["version"]
        files = [f"{self.place}/{shard.stem}.npy" for shard in shards.shards]
        with ThreadPoolExecutor(16) as pool:  # each may be a request of its own
            contents = list(pool.map(_hashed, files))
        hashes = [entry["sha256"] for entry in self.summary["shards"]]
        parts = []
        for file, (content, sha), shard, wanted in zip(
            files, contents, shards.shards, hashes, strict=True
        ):
            part = _labels(file, content)
            check_sha256(file, sha, wanted, _REMEDY)
            if part.shape != (shard.clips, shards.snippets) or part.dtype != np.uint8:
                raise DataError(
                    f"{file} is {part.dtype} {list(part.shape)}, expected uint8 "
                    f"{[shard.clips, shards.snippets]}",
                    remedy=_REMEDY,
                )
            parts.append(part)
        self.components: NDArray[np.uint8] = np.concatenate(parts)
        """Component ids of every clip, `[N, T]`."""
        plan: dict[str, Any] = self.summary.get("plan", {})  # none: made by other means
        joining = plan.get("joining", {})
        by_likeness = joining.get("grouping") in GROUPINGS
        self.rule: str = joining.get("rule", "or")
        self.thresholds: dict[str, float] = plan["thresholds"] if by_likeness else {}
        """Of the streams that join snippets; empty where likeness does not (the controls)."""


def _hashed(file: str) -> tuple[bytes, str]:
    try:
        content = _bytes(file)
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing or damaged: {error}", remedy=_REMEDY) from None
    return content, sha256(content)


def _labels(file: str, content: bytes) -> NDArray[Any]:
    # Not in threads: numpy parses headers by `ast`, where Python 3.11 sometimes fails with two.
    try:
        labels: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{file} is missing or damaged: {error}", remedy=_REMEDY) from None
    return labels


def _bytes(file: str) -> bytes:
    return read_url(file) if is_url(file) else Path(file).read_bytes()


def _only_one(shards: ShardSet) -> Path:
    if shards.remote:
        raise DataError(
            f"{shards.name} is remote, and its grounding is not named",
            remedy="Set data.grounding= to a folder or URL",
        )
    found = sorted(path.parent for path in (shards.folder / GROUNDINGS).glob(f"*/{SUMMARY}"))
    if len(found) != 1:
        raise DataError(
            f"{shards.folder}/{GROUNDINGS} holds {len(found)} finished groundings"
            + "".join(f", {path.name}" for path in found),
            remedy="Run avvp ground, or choose one with data.grounding=FOLDER",
        )
    return found[0]
