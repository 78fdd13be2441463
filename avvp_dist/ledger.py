"""The one record of finished work, and of the inputs it was made from.

A piece of work (a shard, a stage of a job) is made from inputs that one digest identifies. Its
record is one JSON file, written whole after the piece itself. A piece counts as finished only while
its record has the digest of today's inputs. So the same command again makes the missing pieces, and
after a change of inputs it makes the affected pieces anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from avvp_dist.commit import write_json

_FINISHED, _BEGUN = "made_from", "begun_from"


class Ledger:
    """Records in one folder, `NAME.json` for each piece; several processes may use it.

    Args:
        folder: created with the first record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """File of a piece's record."""
        return self.folder / f"{name}.json"

    def finished(self, name: str, made_from: str) -> dict[str, Any] | None:
        """Values recorded with a finished piece; None unless it was made from this digest."""
        record = self._read(name)
        if record.pop(_FINISHED, None) != made_from:
            return None
        return record

    def begun(self, name: str, made_from: str) -> bool:
        """Whether an attempt from this digest was cut off."""
        return self._read(name).get(_BEGUN) == made_from

    def begin(self, name: str, made_from: str) -> bool:
        """Record that a piece is being made.

        Returns:
            True if an earlier attempt from the same digest was cut off, so that its remains are of
            use. False if the caller must remove whatever lies there.
        """
        resumes = self.begun(name, made_from)
        if not resumes:
            write_json(self.path(name), {_BEGUN: made_from})
        return resumes

    def finish(self, name: str, made_from: str, **values: object) -> None:
        """Record that a piece is whole, with plain `values` that go with it.

        Raises:
            StorageError: when the disk is full.
        """
        write_json(self.path(name), {_FINISHED: made_from, **values})

    def _read(self, name: str) -> dict[str, Any]:
        try:
            record = json.loads(self.path(name).read_text())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}
