"""Records of a run: append-only JSON lines on local disk, from which MLflow is filled.

Each line is an object with `kind`, `time`, and the fields of the record class of that kind. Readers
ignore unknown kinds and fields, and a field that came later has a default, so that older and newer
code read the same files.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import ClassVar, SupportsFloat

from avvp_dist.errors import DataError, StorageError

RECORDS = "records.jsonl"
FIGURES = "figures"
"""Folder of the pictures among the artifacts of a run."""


def _milliseconds() -> int:
    return int(time.time() * 1000)


@dataclass(frozen=True, kw_only=True)
class _Record:
    time: int = field(default_factory=_milliseconds)
    """Milliseconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class RunRecord(_Record):
    """Start of a run, or of another attempt at it."""

    kind: ClassVar[str] = "run"

    key: str
    """Name of the run among those of its folder; the attempts at one run share it."""
    experiment: str
    """MLflow experiment."""
    name: str
    """Name of the run in MLflow."""
    config: Mapping[str, object]
    """Resolved config, nested by section."""
    tags: Mapping[str, str]
    """Hashes and versions of everything the run was made from."""
    inputs: Mapping[str, str]
    """Data that the run reads: path to hash."""
    parent: str = ""
    """Output folder of the run that this one is nested under."""
    command: str = ""
    """Command line of the stage."""


@dataclass(frozen=True, kw_only=True)
class MetricsRecord(_Record):
    """Metrics of a step."""

    kind: ClassVar[str] = "metrics"

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ArtifactRecord(_Record):
    """A file to keep with the run."""

    kind: ClassVar[str] = "artifact"

    path: str
    under: str = ""
    """Folder among the run's artifacts."""


@dataclass(frozen=True, kw_only=True)
class RegisterRecord(_Record):
    """An exported model to register as a version."""

    kind: ClassVar[str] = "register"

    model: str
    """Name of the registered model."""
    folder: str
    tags: Mapping[str, str]
    """Tags of the version; `digest` is the folder's."""
    aliases: Sequence[str] = ("candidate",)
    """Aliases that move to the version."""


@dataclass(frozen=True, kw_only=True)
class EndRecord(_Record):
    """End of an attempt: `FINISHED`, `FAILED` or `KILLED`."""

    kind: ClassVar[str] = "end"

    status: str


@dataclass(frozen=True, kw_only=True)
class NodeRecord(_Record):
    """A sample of a node's system metrics."""

    kind: ClassVar[str] = "node"

    values: Mapping[str, float]


Record = RunRecord | MetricsRecord | ArtifactRecord | RegisterRecord | EndRecord | NodeRecord
_KINDS: dict[str, type[Record]] = {
    record.kind: record
    for record in (
        RunRecord,
        MetricsRecord,
        ArtifactRecord,
        RegisterRecord,
        EndRecord,
        NodeRecord,
    )
}


class RecordWriter:
    """A file of records, opened for appending; a line that a crash cut off is removed.

    A full disk costs one warning and no record: the records wait in memory, and every later call
    tries to write them again.
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

    def write(self, record: Record) -> None:
        """Append a record; the operating system has it when this returns."""
        line = json.dumps({"kind": record.kind, **asdict(record)})
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
                remedy="Free some space; a resumed run writes those since its checkpoint again",
            ) from None
        finally:
            self._file.close()

    def _append(self) -> None:
        while self._waiting:  # a nearly full disk takes a part
            del self._waiting[: self._file.write(self._waiting)]


def read_records(folder: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Read the records of the runs in a folder, see `read_lines`."""
    return read_lines(folder / RECORDS, offset)


def read_lines(path: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Read a file of records from a byte offset on, each with the offset behind its line.

    A missing file has none. A last line without its end is not read: it is being written, or a
    crash cut it off.

    Raises:
        DataError: if a line is no record.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start, offset = offset, offset + len(line)
            try:
                record = _parsed(line)
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(
                    f"{path}: the line at byte {start} is no record: {error}",
                    remedy="Remove the line; nothing but its record is lost",
                ) from None
            if record is not None:
                yield record, offset


def _parsed(line: bytes) -> Record | None:
    """The record of a line; None for a kind that only newer code knows."""
    values = json.loads(line)
    kind = _KINDS.get(values["kind"])
    if kind is None:
        return None
    return kind(**{item.name: values[item.name] for item in fields(kind) if item.name in values})


def read_series(folder: Path) -> dict[str, dict[int, float]]:
    """Read every metric of the newest run in a folder: name to step to value.

    A step that was logged twice, before and after a crash, has its newest value.

    Raises:
        DataError: if a line is no record.
    """
    series: dict[str, dict[int, float]] = {}
    key = None
    for record, _ in read_records(folder):
        if isinstance(record, RunRecord) and record.key != key:
            key, series = record.key, {}
        elif isinstance(record, MetricsRecord):
            for name, value in record.values.items():
                series.setdefault(name, {})[record.step] = value
    return series


def finite(values: Mapping[str, SupportsFloat]) -> dict[str, float]:
    """Keep the finite values, as floats: JSON and MLflow can hold no others."""
    numbers = {name: float(value) for name, value in values.items()}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
