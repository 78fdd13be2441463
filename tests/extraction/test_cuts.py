"""Cuts by JSON and by AudioSet's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from avvp_dist.errors import DataError
from avvp_dist.extraction.cuts import Cut, cut_items, read_cuts
from avvp_dist.extraction.files import MediaItem
from avvp_dist.extraction.places import Place

TABLE = """# Segments csv created
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"
#-a, 1, 2, "x"
--BfvyPmVMo, 20.5, 30, "/m/03l9g"
--BfvyPmVMo, 60, 65
"""


def write(folder: Path, text: str) -> Path:
    (folder / "cuts.csv").write_text(text)
    return folder / "cuts.csv"


def test_a_table_of_audioset_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, TABLE)
    rows = list(read_cuts(path))
    assert rows[0] == Cut("--4gqARaEJE", 0, 10, ("/m/068hy", "/m/07q6cd_"))
    assert [one.id for one in rows] == [
        "--4gqARaEJE_0_10",
        "--BfvyPmVMo_20.5_30",
        "--BfvyPmVMo_60_65",
    ]
    assert rows[2].labels is None
    names = 'index,mid,display_name\n0,/m/03l9g,"Hammer, tool"\n'
    (tmp_path / "class_labels_indices.csv").write_text(names)
    assert [one.labels for one in read_cuts(path)][1] == ("Hammer, tool",)


def test_a_header_is_no_row(tmp_path: Path) -> None:
    path = write(tmp_path, "file,start,end,labels\na.b,0,1.5,Dog\n")
    assert list(read_cuts(path)) == [Cut("a.b", 0, 1.5, ("Dog",))]


@pytest.mark.parametrize("row", ["a,5,5", "a,-1,5", "a,nan,5", "a,0", "a,0,x", "a,0,inf"])
def test_a_broken_row_is_named(row: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"cuts\.csv: '{row}' is no row"):
        list(read_cuts(write(tmp_path, f"x,0,1\n{row}\n")))


def test_each_row_with_a_file_is_a_clip(tmp_path: Path, capsys: Any) -> None:
    items = [
        MediaItem("tar/--BfvyPmVMo", "/a.tar#x", ("Dog",), places=(Place("/a.tar", 512, 9),)),
        MediaItem("other", "/other.mp4"),
        MediaItem("--4gqARaEJE", "/--4gqARaEJE.mp4"),
    ]
    first, second, third = cut_items(items, str(write(tmp_path, TABLE + "none,0,1\n")))
    assert (first.id, first.span, first.labels) == (
        "--4gqARaEJE_0_10",
        (0, 10),
        ("/m/068hy", "/m/07q6cd_"),
    )
    assert (first.path, first.places) == (
        "/--4gqARaEJE.mp4#t=0,10",
        (Place("/--4gqARaEJE.mp4"),),
    )
    assert [one.id for one in (second, third)] == ["--BfvyPmVMo_20.5_30", "--BfvyPmVMo_60_65"]
    assert (second.path, second.labels) == ("/a.tar#x#t=20.5,30", ("Dog",))
    assert second.places == items[0].places
    assert "1 of 4 rows have no file, and 1 of 3 files no row" in capsys.readouterr().out
    with pytest.raises(DataError, match="none of its 3 rows names one of the 1 files"):
        cut_items(items[1:2], str(write(tmp_path, TABLE)))


def test_times_of_json_cut_only_if_it_is_asked_for() -> None:
    items = [MediaItem("a", "/a.tar#a", span=(1, 2)), MediaItem("b", "/a.tar#b")]
    assert [one.span for one in cut_items(items, "none")] == [None, None]
    one, other = cut_items(items, "json")
    assert one == items[0] and other.fault is not None and "no start and end" in other.fault[1]
    with pytest.raises(DataError, match=r"cut=json: no sample, first /a\.tar#b, has"):
        cut_items(items[1:], "json")
