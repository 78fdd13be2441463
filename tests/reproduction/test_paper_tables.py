"""The tables on paper: the published numbers, the Markdown and the CSV."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from avvp_dist.evaluation.scores import LEVELS, STREAM_SCORES, Summary
from avvp_dist.reproduction.paper_tables import PAPER, TableRow, markdown, write_table

KEYS = [f"{level}_{stream}" for level in LEVELS for stream in STREAM_SCORES]
CAPTION = "Simulated features. 24 test clips, audio annotations 2024"


def line(method: str, paper: str = "", seeds: int = 3) -> TableRow:
    """Scores 10.06, 11.06 and so on in the order of KEYS; no summary without seeds."""
    deviation = 1.234 if seeds > 1 else math.nan
    found = {key: Summary(n + 10.06, deviation, n + 8, n + 12) for n, key in enumerate(KEYS)}
    return TableRow(method, paper, seeds, found if seeds else {})


def rows_of(text: str) -> list[list[str]]:
    """Cells of every row of the Markdown tables in a text, without headers and rulers."""
    rows = [
        [c.strip() for c in row.split("|")[1:-1]] for row in text.splitlines() if row[:1] == "|"
    ]
    return [row for row in rows if not row[0].startswith("---") and row[0].lower() != "method"]


@pytest.mark.shared
def test_the_papers_numbers_are_all_there(shared: Path) -> None:
    facts = (shared / "paper" / "FACTS.md").read_text()
    tables = facts.partition("## Published numbers")[2].partition("\n## ")[0]
    published: dict[str, tuple[float, ...]] = {}
    for method, *cells in rows_of(tables):
        name = "MA" if method == "Wu et al. (MA)" else method.replace(" + ", "+")
        published[name] = (*published.get(name, ()), *map(float, cells))
    assert published == PAPER
    assert {len(numbers) for numbers in PAPER.values()} == {10}


def test_a_cell_is_mean_deviation_interval_and_the_papers_figure() -> None:
    segment, event = rows_of(markdown([line("HAN", "HAN")], CAPTION))
    assert segment[:4] == [
        "HAN",
        "3",
        "10.1 ± 1.2 [8.0, 12.0] (60.1)",
        "11.1 ± 1.2 [9.0, 13.0] (52.9)",
    ]
    assert segment[-1] == "14.1 ± 1.2 [12.0, 16.0] (55.4)"
    assert event[2] == "15.1 ± 1.2 [13.0, 17.0] (51.3)"
    assert event[-1] == "19.1 ± 1.2 [17.0, 21.0] (48.0)"


def test_a_cell_leaves_out_what_is_not_there() -> None:
    given = [line("one seed", "Base", 1), line("no paper"), line("none", "MA", 0), line("x", "", 0)]
    one, ours, theirs, nothing = rows_of(markdown(given, CAPTION))[:4]
    assert one[:3] == ["one seed", "1", "10.1 [8.0, 12.0] (60.0)"]
    assert ours[:3] == ["no paper", "3", "10.1 ± 1.2 [8.0, 12.0]"]
    assert theirs[:3] == ["none", "0", "- (60.3)"]
    assert nothing == ["x", "0", *["-"] * 5]


def test_both_titles_say_what_the_numbers_are() -> None:
    text = markdown([line("HAN", "HAN")], CAPTION)
    titles = [row for row in text.splitlines() if row.startswith("**Table")]
    assert titles == [
        f"**Table 1. Segment-level F-scores (%). {CAPTION}**",
        f"**Table 2. Event-level F-scores (%). {CAPTION}**",
    ]
    headers = [row for row in text.splitlines() if row.startswith("| method")]
    assert headers == ["| method | seeds | Audio | Visual | AV | Type@AV | Event@AV |"] * 2


def test_the_csv_has_one_row_for_each_number(tmp_path: Path) -> None:
    lines = [line("HAN", "HAN"), line("one, seed", "", 1), line("none", "MA", 0)]
    write_table(tmp_path / "tables.csv", lines, "Simulated features")
    with (tmp_path / "tables.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(level, one.method, s) for level in LEVELS for one in lines for s in STREAM_SCORES]
    assert [(row["level"], row["method"], row["score"]) for row in rows] == expected
    assert {row["features"] for row in rows} == {"Simulated features"}
    names = ("seeds", "mean", "deviation", "low_95", "high_95", "paper")
    numbers = [tuple(row[name] for name in names) for row in rows]
    assert numbers[0] == ("3", "10.0600", "1.2340", "8.0000", "12.0000", "60.1")
    assert numbers[5] == ("1", "10.0600", "", "8.0000", "12.0000", "")
    assert numbers[10] == ("0", "", "", "", "", "60.3")
    assert numbers[15] == ("3", "15.0600", "1.2340", "13.0000", "17.0000", "51.3")
