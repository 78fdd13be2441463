"""The one record of what is finished, and of what it was made from.

A piece of work (a shard, a stage of a job) is made from inputs that a digest stands for. Its record
is one JSON file, written whole after the piece itself. A piece is finished only while its record
carries the digest that it would be made from now, so the same command again does what is missing,
and a changed input makes its pieces anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from avvp_dist.commit import write_json

_FINISHED, _BEGUN = "made_from", "begun_from"


class Ledger:
    """Records in one folder, `NAME.json` for each piece; several processes may share it.

    Args:
        folder: made when the first record is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """The record of a piece."""
        return self.folder / f"{name}.json"

    def finished(self, name: str, made_from: str) -> dict[str, Any] | None:
        """What was recorded with a finished piece; None unless it was made from this digest."""
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
            Whether an earlier attempt from the same digest was cut off: what it left is of use.
            Otherwise the caller removes what lies there.
        """
        resumes = self.begun(name, made_from)
        if not resumes:
            write_json(self.path(name), {_BEGUN: made_from})
        return resumes

    def finish(self, name: str, made_from: str, **found: Any) -> None:
        """Record that a piece is whole, with the plain values `found` that go with it.

        Raises:
            StorageError: when the disk is full.
        """
        write_json(self.path(name), {_FINISHED: made_from, **found})

    def _read(self, name: str) -> dict[str, Any]:
        try:
            record = json.loads(self.path(name).read_text())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}
