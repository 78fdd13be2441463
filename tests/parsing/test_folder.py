"""Folders of timelines: what is written, kept and removed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from avvp_dist.commit import verify_folder
from avvp_dist.errors import ConfigError
from avvp_dist.parsing.folder import TimelineFolder
from avvp_dist.parsing.timeline import Timeline
from tests.parsing.timelines import HOSTILE, SPANS, timeline_of


def write(folder: Path, *timelines: Timeline, formats: tuple[str, ...] = ("json", "html")) -> int:
    """Write timelines; the number of files that this changed."""
    opened = TimelineFolder(folder, formats)
    for timeline in timelines:
        opened.write(timeline)
    opened.close()
    assert verify_folder(folder) == []
    return opened.changed


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_nothing_is_written_twice(tmp_path: Path) -> None:
    clips = [timeline_of(SPANS, clip_id=name) for name in ("a", "b")]
    assert write(tmp_path, *clips) == 6  # the list of clips and the manifest too
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert write(tmp_path, *clips) == 0
    assert write(tmp_path, clips[1]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_clips_and_formats_come_together(tmp_path: Path) -> None:
    write(tmp_path, timeline_of(SPANS, clip_id="a"), formats=("html",))
    assert names(tmp_path) == {"a.html", "manifest.json"}
    write(tmp_path, timeline_of(SPANS, clip_id="b"), formats=("html",))
    assert names(tmp_path) == {"a.html", "b.html", "index.html", "manifest.json"}
    write(tmp_path, timeline_of(SPANS, clip_id="a"), formats=("json",))
    assert {"a.html", "a.json"} <= names(tmp_path)


def test_no_file_shows_an_older_result(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a user's own")
    write(tmp_path, timeline_of(SPANS, clip_id="a"), formats=("html", "csv"))
    write(tmp_path, timeline_of(SPANS[:2], clip_id="a"), formats=("json",))
    assert names(tmp_path) == {"a.json", "manifest.json", "mine.txt"}


def test_the_same_parser_by_another_name_found_the_same(tmp_path: Path) -> None:
    timeline = timeline_of(SPANS, clip_id="a")
    write(tmp_path, timeline, formats=("json", "csv"))
    renamed = replace(timeline, model=replace(timeline.model, version="/elsewhere/model"))
    assert write(tmp_path, renamed, formats=("json",)) == 2
    assert "/elsewhere/model" in (tmp_path / "a.json").read_text()
    assert "a.audio.csv" in names(tmp_path)


def test_a_file_that_is_gone_is_made_again_or_forgotten(tmp_path: Path) -> None:
    write(tmp_path, timeline_of(SPANS, clip_id="a"))
    (tmp_path / "a.html").unlink()
    assert write(tmp_path, timeline_of(SPANS, clip_id="a"), formats=("json",)) == 1  # the manifest
    write(tmp_path, timeline_of(SPANS, clip_id="a"))
    assert "a.html" in names(tmp_path)


def test_a_manifest_of_others_removes_nothing_outside(tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside.txt"
    write(out, timeline_of(SPANS, clip_id="a"), formats=("csv",))
    outside.write_text("a user's own")
    manifest = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(manifest.replace("a.audio.csv", "../outside.txt"))
    write(out, timeline_of(SPANS[:2], clip_id="a"), formats=("json",))
    assert outside.exists() and not (out / "a.visual.csv").exists()


def test_no_format_is_no_request(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^formats: none is given\. Choose from json, csv"):
        TimelineFolder(tmp_path, [])


def test_clips_of_any_name_lie_in_the_folder(tmp_path: Path) -> None:
    ids = [name for name in (*HOSTILE, "index", "manifest") if name]
    write(tmp_path / "out", *(timeline_of(SPANS, clip_id=name) for name in ids))
    assert len(names(tmp_path / "out")) == 2 * len(ids) + 2
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize("text", ["{}", "[]", '{"format": "avvp-shards-2"}', "\xff", "[" * 99_999])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, "latin1")
    with pytest.raises(ConfigError, match=r"^out: .* holds something else"):
        TimelineFolder(tmp_path, ["json"])
