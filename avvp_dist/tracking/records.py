"""Records of a run: append-only JSON lines on local disk, the truth that MLflow is fed from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RECORDS = "records.jsonl"


class Records:
    """`FOLDER/records.jsonl`, opened for appending; a line cut off by a crash is removed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / RECORDS
        if self.path.exists():
            whole = self.path.read_bytes().rpartition(b"\n")
            with self.path.open("r+b") as file:
                file.truncate(len(whole[0]) + len(whole[1]))
        self._file = self.path.open("a", buffering=1)

    def write(self, kind: str, **values: Any) -> None:
        """Append one record; it is on its way to the disk when this returns."""
        line = json.dumps({"kind": kind, "time": int(time.time() * 1000), **values})
        self._file.write(line + "\n")

    def close(self) -> None:
        self._file.close()


def read_records(folder: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Whole records from a byte offset on, each with the offset behind it."""
    path = folder / RECORDS
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield json.loads(line), offset


def read_series(folder: Path) -> dict[str, dict[int, float]]:
    """Every metric of the newest run in a folder: name to step to value.

    A step that was logged twice, before and after a crash, has its newest value.
    """
    series: dict[str, dict[int, float]] = {}
    key = None
    for record, _ in read_records(folder):
        if record["kind"] == "run" and record["key"] != key:
            key, series = record["key"], {}
        elif record["kind"] == "metrics":
            for name, value in record["values"].items():
                series.setdefault(name, {})[record["step"]] = value
    return series


def finite(values: dict[str, Any]) -> dict[str, float]:
    """The metrics among `values` that JSON and MLflow can hold, as floats."""
    numbers = {name: float(value) for name, value in values.items()}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
