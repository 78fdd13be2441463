"""A grounding on disk: component ids of every clip of a shard set, beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avvp_dist.data.shards import ShardSet
from avvp_dist.errors import DataError

SUMMARY = "grounding.json"
"""Written when every shard is done; a grounding without it is not finished."""


class Grounding:
    """A finished grounding of `shards`; `folder` may be empty when there is only one.

    Raises:
        DataError: if there is none, more than one to choose from, or it is of other shards.
    """

    def __init__(self, shards: ShardSet, folder: str | Path = "") -> None:
        self.folder = Path(folder) if folder else _only_one(shards)
        path = self.folder / SUMMARY
        if not path.is_file():
            raise DataError(
                f"{path} is missing: no finished grounding",
                remedy="Run tools/ground.py (again: it goes on where it stopped)",
            )
        self.summary: dict[str, Any] = json.loads(path.read_text())
        if self.summary["manifest"] != shards.digest:
            raise DataError(
                f"{self.folder} was made for another shard set than {shards.folder}",
                remedy="Run tools/ground.py on this one",
            )
        self.version: str = self.summary["version"]
        parts = [np.load(self.folder / f"{shard.path.stem}.npy") for shard in shards.shards]
        self.components: NDArray[np.uint8] = np.concatenate(parts)

    def gather(self, clips: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Component ids of `clips [B]`: uint8 `[B, T]`."""
        return self.components[clips]


def _only_one(shards: ShardSet) -> Path:
    found = sorted(path.parent for path in (shards.folder / "grounding").glob(f"*/{SUMMARY}"))
    if len(found) != 1:
        raise DataError(
            f"{shards.folder}/grounding holds {len(found)} finished groundings"
            + "".join(f", {path.name}" for path in found),
            remedy="Run tools/ground.py, or choose one with data.grounding=FOLDER",
        )
    return found[0]
