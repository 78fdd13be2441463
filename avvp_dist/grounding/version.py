"""A finished version of a grounding, opened: component ids of every clip of a shard set."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import check_sha256, sha256
from avvp_dist.config.grounding import GROUPINGS
from avvp_dist.errors import DataError
from avvp_dist.grounding.summary import GROUNDINGS, SUMMARY, GroundingSummary, read_bytes
from avvp_dist.grounding.thresholds import Thresholds
from avvp_dist.shards.schema import MODALITY_IDS, PADDING
from avvp_dist.shards.shard_set import ShardSet

_REMEDY = "Copy it again, or remove it and run `avvp ground` again"
_REQUESTS = 16
"""Files that are fetched at once, because each may be a request to a server."""


class Grounding:
    """A finished grounding of `shards`.

    Attributes:
        place: folder or URL.
        summary: content of its `grounding.json`.
        version: name of the version.
        components: component ids of every clip `[N, T]`: uint8, or int32 if each modality has its
            own graph (`MODALITY_IDS`).
        rule: `or`, `and`: whether any or all streams have to reach their threshold.
        thresholds: of the streams that join snippets; empty for controls, which look at no
            features, and for labels of another program.

    Args:
        place: folder or URL; may be empty if the shard set has exactly one grounding.

    Raises:
        DataError: if there is none or more than one to choose from, if it belongs to another shard
            set, or if a file is missing or damaged.
    """

    def __init__(self, shards: ShardSet, place: str | Path = "") -> None:
        self.place = str(place).rstrip("/") or str(_only_one(shards))
        self.summary = GroundingSummary.read(self.place)
        if self.summary.manifest != shards.content:
            raise DataError(
                f"{self.place} was made for another shard set than {shards.name}",
                remedy="Run `avvp ground` on this one",
            )
        self.version = self.summary.version
        self.components: NDArray[np.integer] = np.concatenate(self._load_labels(shards))
        plan = self.summary.plan
        self.rule = plan.link.rule if plan else "or"
        compares = plan is not None and plan.link.grouping in GROUPINGS
        self.thresholds: Thresholds = plan.thresholds if plan and compares else {}

    def _load_labels(self, shards: ShardSet) -> list[NDArray[np.uint8]]:
        """Labels of each shard, `[clips, T]`, verified."""
        files = [f"{self.place}/{shard.stem}.npy" for shard in shards.shards]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            contents = list(pool.map(_content, files))
        parts = []
        for file, (content, sha), shard, entry in zip(
            files, contents, shards.shards, self.summary.files, strict=True
        ):
            # Not in the threads: numpy parses headers with `ast`, which fails now and then when
            # two threads of Python 3.11 use it.
            part = _parse(file, content)
            check_sha256(file, sha, entry.sha256, _REMEDY)
            if part.shape != (shard.clips, shards.snippets) or part.dtype != np.uint8:
                raise DataError(
                    f"{file} is {part.dtype} {list(part.shape)}, expected uint8 "
                    f"{[shard.clips, shards.snippets]}",
                    remedy=_REMEDY,
                )
            parts.append(part)
        return parts


class ModalityGrounding(Grounding):
    """Two finished groundings of `shards`: the graph of its audio and the graph of its vision.

    A snippet without a label in either has none. What either would join is a likely-false negative:
    the rule is `or` over the thresholds of both.

    Raises:
        DataError: as `Grounding` does for each of them.
    """

    def __init__(self, shards: ShardSet, audio: str | Path, visual: str | Path) -> None:
        super().__init__(shards, audio)
        other = Grounding(shards, visual)
        padding = (self.components == PADDING) | (other.components == PADDING)
        ids = self.components.astype(np.int32) * MODALITY_IDS + other.components
        self.components = np.where(padding, np.int32(PADDING), ids)
        self.place = f"{self.place} and {other.place}"
        self.version = f"{self.version}|{other.version}"
        self.rule, self.thresholds = "or", {**self.thresholds, **other.thresholds}


def _content(file: str) -> tuple[bytes, str]:
    """Content of a file of labels and its SHA-256."""
    try:
        content = read_bytes(file)
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing or damaged: {error}", remedy=_REMEDY) from None
    return content, sha256(content)


def _parse(file: str, content: bytes) -> NDArray[np.uint8]:
    try:
        labels: NDArray[np.uint8] = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{file} is missing or damaged: {error}", remedy=_REMEDY) from None
    return labels


def _only_one(shards: ShardSet) -> Path:
    """Folder of the only finished grounding beside the shards."""
    if shards.remote:
        raise DataError(
            f"{shards.name} is remote, and its grounding is not named",
            remedy="Set data.grounding= to a folder or URL",
        )
    folders = sorted(path.parent for path in (shards.folder / GROUNDINGS).glob(f"*/{SUMMARY}"))
    if len(folders) != 1:
        raise DataError(
            f"{shards.folder}/{GROUNDINGS} holds {len(folders)} finished groundings"
            + "".join(f", {path.name}" for path in folders),
            remedy="Run `avvp ground`, or choose one with data.grounding=FOLDER",
        )
    return folders[0]
