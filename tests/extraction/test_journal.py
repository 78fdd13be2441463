"""Journals: records that were cut off, and attempts that came to no end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from avvp_dist.extraction.journal import Attempts, attempts, read_journal, watched


def write(path: Path, *records: tuple[str, str], rest: str = "") -> Path:
    lines = [json.dumps({"id": id_, "source": f"/{id_}", "state": state}) for id_, state in records]
    path.write_text("".join(f"{line}\n" for line in lines) + rest)
    return path


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a", ("a", "begun"), ("a", "done"), rest='{"id": "b", "sta')
    assert [one.state for one in read_journal(path)] == ["begun", "done"]
    assert read_journal(tmp_path / "none") == []


def test_attempts_without_an_end_are_counted(tmp_path: Path) -> None:
    twice = [("b", "begun"), ("b", "begun")]
    ended = [("a", "begun"), ("a", "begun"), ("a", "done"), ("c", "begun"), ("c", "failed")]
    journal = write(tmp_path / "a", *ended, *twice, ("d", "alone"), ("d", "begun"))
    none = Attempts()
    expected = {"/a": none, "/b": Attempts(2), "/c": none, "/d": Attempts(2, alone=True)}
    assert attempts(journal) == expected


def test_the_bar_counts_each_file_once(tmp_path: Path, capsys: Any) -> None:
    again = [("a", "begun"), ("a", "done"), ("a", "begun"), ("a", "done"), ("b", "begun")]
    write(tmp_path / "media-0.jsonl", *again)
    with watched(tmp_path, 3):
        write(tmp_path / "media-1.jsonl", ("c", "begun"), ("c", "failed"))
    assert "2/3" in capsys.readouterr().err.splitlines()[-1]
