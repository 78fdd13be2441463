"""Local records: kept over crashes and full disks, and readable across versions."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from avvp_dist.errors import DataError, StorageError
from avvp_dist.tracking.records import (
    RECORDS,
    ArtifactRecord,
    EndRecord,
    MetricsRecord,
    NodeRecord,
    Record,
    RecordWriter,
    RegisterRecord,
    RunRecord,
    finite,
    read_records,
    read_series,
)


def metrics(step: int, **values: float) -> MetricsRecord:
    return MetricsRecord(step=step, values=values)


def start(key: str) -> RunRecord:
    return RunRecord(key=key, experiment="avvp-test", name="run", config={}, tags={}, inputs={})


def steps(folder: Path, offset: int = 0) -> list[int]:
    """Steps of the metrics of a folder."""
    records = (record for record, _ in read_records(folder, offset))
    return [record.step for record in records if isinstance(record, MetricsRecord)]


def test_records_come_back_in_order_over_several_openings(tmp_path: Path) -> None:
    for step in (1, 2):
        writer = RecordWriter(tmp_path / "run")
        writer.write(metrics(step, loss=1 / step))
        writer.close()
    assert steps(tmp_path / "run") == [1, 2]
    assert all(record.time > 1.6e12 for record, _ in read_records(tmp_path / "run"))


@pytest.mark.parametrize(
    "record",
    [
        RunRecord(
            key="a",
            experiment="avvp-pretrain",
            name="run",
            config={"trainer": {"epochs": 3, "out": "run"}, "weights": [0.5, 1.0]},
            tags={"manifest": "abc"},
            inputs={"/data": "def"},
            parent="/whole",
        ),
        MetricsRecord(step=3, values={"train/loss": 0.1}),
        ArtifactRecord(path="/run/curves.png", under="figures"),
        RegisterRecord(model="avvp-encoder", folder="/run/model", tags={"digest": "abc"}),
        EndRecord(status="FINISHED"),
        NodeRecord(values={"cpu_utilization_percentage": 3.0}),
    ],
    ids=lambda record: str(record.kind),
)
def test_every_kind_of_record_is_read_as_it_was_written(tmp_path: Path, record: Record) -> None:
    writer = RecordWriter(tmp_path)
    writer.write(record)
    writer.close()
    ((back, end),) = read_records(tmp_path)
    assert (back.kind, back.time) == (record.kind, record.time)
    aliases = {"aliases": ["candidate"]} if isinstance(record, RegisterRecord) else {}
    assert vars(back) == {**vars(record), **aliases}
    assert end == writer.path.stat().st_size


def test_a_record_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path)
    writer.write(EndRecord(status="FINISHED"))
    ((record, _),) = read_records(tmp_path)
    assert isinstance(record, EndRecord) and record.status == "FINISHED"
    writer.close()


def test_reading_goes_on_from_an_offset(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path)
    for step in range(3):
        writer.write(metrics(step))
    offsets = [offset for _, offset in read_records(tmp_path)]
    assert steps(tmp_path, offsets[0]) == [1, 2]
    assert list(read_records(tmp_path, offsets[-1])) == []
    writer.close()


def test_a_missing_file_has_no_records(tmp_path: Path) -> None:
    assert list(read_records(tmp_path)) == []
    assert read_series(tmp_path) == {}


@pytest.mark.parametrize("whole", [2, 0])
@pytest.mark.parametrize("torn", ['{"kind": "metrics", "st', ""])
def test_a_torn_last_line_is_removed(tmp_path: Path, whole: int, torn: str) -> None:
    path = tmp_path / RECORDS
    line = '{"kind": "metrics", "time": 1, "step": %d, "values": {}}\n'
    path.write_text("".join(line % step for step in range(whole)) + torn)
    assert steps(tmp_path) == list(range(whole))
    writer = RecordWriter(tmp_path)
    writer.write(metrics(7))
    writer.close()
    assert steps(tmp_path) == [*range(whole), 7]
    assert len(path.read_text().splitlines()) == whole + 1


def test_lines_of_other_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / RECORDS
    path.write_text(
        '{"kind": "register", "time": 1, "model": "m", "folder": "f", "tags": {}}\n'
        '{"kind": "telemetry", "time": 2}\n'
        '{"kind": "end", "time": 3, "status": "FINISHED", "reason": "done"}\n'
    )
    (older, _), (newer, offset) = read_records(tmp_path)
    assert isinstance(older, RegisterRecord) and older.aliases == ("candidate",)
    assert newer == EndRecord(time=3, status="FINISHED")
    assert offset == path.stat().st_size


@pytest.mark.parametrize("line", ["nothing", "[]", "{}", '{"kind": "end", "time": 3}'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / RECORDS
    path.write_text('{"kind": "end", "time": 3, "status": "FAILED"}\n' + line + "\n")
    with pytest.raises(DataError, match=f"{path}: the line at byte 47 is no record: ") as caught:
        list(read_records(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_step_logged_twice_has_its_newest_value(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path)
    writer.write(start("one"))
    writer.write(metrics(1, loss=3.0, lr=0.1))
    writer.write(metrics(2, loss=2.0))
    writer.write(start("one"))  # resumed after a crash
    writer.write(metrics(2, loss=2.5))
    writer.close()
    assert read_series(tmp_path) == {"loss": {1: 3.0, 2: 2.5}, "lr": {1: 0.1}}


def test_only_the_newest_run_counts(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path)
    for key, loss in (("one", 3.0), ("two", 1.0)):
        writer.write(start(key))
        writer.write(metrics(int(loss), loss=loss))
        writer.write(EndRecord(status="FINISHED"))
    writer.close()
    assert read_series(tmp_path) == {"loss": {1: 1.0}}


def test_values_that_are_not_finite_are_dropped() -> None:
    values = {"a": 1, "b": math.nan, "c": math.inf, "d": -math.inf, "e": torch.tensor(0.5)}
    assert finite(values) == {"a": 1.0, "e": 0.5}


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Limit files of this process to `size` bytes; the kernel writes what fits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_a_warning_and_no_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = RecordWriter(tmp_path)
    with disk_of(100):
        for step in range(5):
            writer.write(metrics(step, loss=1.0))
    before = list(read_records(tmp_path))
    assert writer.path.stat().st_size == 100 and len(before) == 1  # and a torn line
    writer.write(metrics(5, loss=1.0))
    writer.close()
    assert steps(tmp_path) == list(range(6))
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"{writer.path}: ") and "the run goes on" in warning


def test_records_that_no_disk_takes_are_not_lost_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = RecordWriter(tmp_path)
    with disk_of(100):
        for step in range(5):
            writer.write(metrics(step, loss=1.0))
        with pytest.raises(StorageError, match=f"{writer.path}: .*its last 4 records are lost"):
            writer.close()
