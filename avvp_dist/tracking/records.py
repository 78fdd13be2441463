"""Records of a run: append-only JSON lines on local disk, the truth that MLflow is fed from."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from avvp_dist.errors import StorageError

RECORDS = "records.jsonl"


class Records:
    """A file of records, opened for appending; a line cut off by a crash is removed.

    A disk that takes no more costs a warning and no record: they wait in memory, and every later
    call offers them to the disk again.
    """

    def __init__(self, folder: Path, name: str = RECORDS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name
        if self.path.exists():
            whole = self.path.read_bytes().rpartition(b"\n")
            with self.path.open("r+b") as file:
                file.truncate(len(whole[0]) + len(whole[1]))
        self._file = self.path.open("ab", buffering=0)
        self._waiting = bytearray()
        self._warned = False

    def write(self, kind: str, **values: Any) -> None:
        """Append one record; it is on its way to the disk when this returns."""
        line = json.dumps({"kind": kind, "time": int(time.time() * 1000), **values})
        self._waiting += f"{line}\n".encode()
        try:
            self._append()
        except OSError as error:
            if not self._warned:
                self._warned = True
                with suppress(OSError):  # the log may lie on the same disk
                    print(
                        f"{self.path}: {error.strerror}; the run goes on and keeps its records "
                        "in memory until the disk takes them",
                        file=sys.stderr,
                    )

    def close(self) -> None:
        """Close the file.

        Raises:
            StorageError: if the disk still does not take every record.
        """
        try:
            self._append()
        except OSError as error:
            lines = self._waiting.count(b"\n")
            raise StorageError(
                f"{self.path}: {error.strerror}, its last {lines} records are lost",
                remedy="Free some space; a run that is resumed makes those since its checkpoint",
            ) from None
        finally:
            self._file.close()

    def _append(self) -> None:
        while self._waiting:  # a disk that is nearly full takes a part
            del self._waiting[: self._file.write(self._waiting)]


def read_records(folder: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Whole records of a run from a byte offset on, each with the offset behind it."""
    return read_lines(folder / RECORDS, offset)


def read_lines(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """The same of any file that `Records` wrote; of none, nothing."""
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
