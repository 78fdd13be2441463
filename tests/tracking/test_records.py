"""Local records: what a crash leaves, and what is read back."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from avvp_dist.errors import StorageError
from avvp_dist.tracking.records import RECORDS, Records, finite, read_records, read_series


def test_records_come_back_in_order_over_several_openings(tmp_path: Path) -> None:
    for step in (1, 2):
        records = Records(tmp_path / "run")
        records.write("metrics", step=step, values={"loss": 1 / step})
        records.close()
    found = [record for record, _ in read_records(tmp_path / "run")]
    assert [record["step"] for record in found] == [1, 2]
    assert all(record["kind"] == "metrics" and record["time"] > 1.6e12 for record in found)


def test_a_record_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.write("end", status="FINISHED")
    assert [record["status"] for record, _ in read_records(tmp_path)] == ["FINISHED"]
    records.close()


def test_reading_goes_on_from_an_offset(tmp_path: Path) -> None:
    records = Records(tmp_path)
    for step in range(3):
        records.write("metrics", step=step, values={})
    offsets = [offset for _, offset in read_records(tmp_path)]
    rest = [record["step"] for record, _ in read_records(tmp_path, offsets[0])]
    assert rest == [1, 2]
    assert list(read_records(tmp_path, offsets[-1])) == []
    records.close()


def test_no_file_is_no_record(tmp_path: Path) -> None:
    assert list(read_records(tmp_path)) == []
    assert read_series(tmp_path) == {}


@pytest.mark.parametrize("whole", ['{"kind": "a"}\n{"kind": "b"}\n', ""])
@pytest.mark.parametrize("torn", ['{"kind": "c', ""])
def test_a_torn_last_line_is_removed(tmp_path: Path, whole: str, torn: str) -> None:
    path = tmp_path / RECORDS
    path.write_text(whole + torn)
    before = [record["kind"] for record, _ in read_records(tmp_path)]
    assert before == (["a", "b"] if whole else [])
    records = Records(tmp_path)
    records.write("d")
    records.close()
    assert path.read_text().startswith(whole + '{"kind": "d"')
    assert [record["kind"] for record, _ in read_records(tmp_path)] == [*before, "d"]


def test_a_step_logged_twice_has_its_newest_value(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.write("run", key="one")
    records.write("metrics", step=1, values={"loss": 3.0, "lr": 0.1})
    records.write("metrics", step=2, values={"loss": 2.0})
    records.write("run", key="one")  # resumed after a crash
    records.write("metrics", step=2, values={"loss": 2.5})
    records.close()
    assert read_series(tmp_path) == {"loss": {1: 3.0, 2: 2.5}, "lr": {1: 0.1}}


def test_only_the_newest_run_counts(tmp_path: Path) -> None:
    records = Records(tmp_path)
    for key, loss in (("one", 3.0), ("two", 1.0)):
        records.write("run", key=key)
        records.write("metrics", step=int(loss), values={"loss": loss})
        records.write("end", status="FINISHED")
    records.close()
    assert read_series(tmp_path) == {"loss": {1: 1.0}}


def test_values_that_are_not_finite_are_dropped() -> None:
    values = {"a": 1, "b": math.nan, "c": math.inf, "d": -math.inf, "e": "0.5"}
    assert finite(values) == {"a": 1.0, "e": 0.5}


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes; the kernel writes what fits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_a_warning_and_no_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = Records(tmp_path)
    with disk_of(100):
        for step in range(5):
            records.write("metrics", step=step, values={"loss": 1.0})
    before = list(read_records(tmp_path))
    assert records.path.stat().st_size == 100 and len(before) == 1  # and a torn line
    records.write("metrics", step=5, values={"loss": 1.0})
    records.close()
    assert [record["step"] for record, _ in read_records(tmp_path)] == list(range(6))
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"{records.path}: ") and "the run goes on" in warning


def test_records_that_no_disk_takes_are_not_lost_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = Records(tmp_path)
    with disk_of(100):
        for step in range(5):
            records.write("metrics", step=step, values={"loss": 1.0})
        with pytest.raises(StorageError, match=f"{records.path}: .*its last 4 records are lost"):
            records.close()
