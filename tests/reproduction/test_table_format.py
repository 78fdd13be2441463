"""Tables as text: cells of several seeds, Markdown, CSV."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from avvp_dist.reproduction.table_format import (
    decimals,
    markdown_table,
    mean_cell,
    spread_cell,
    write_csv,
)


@pytest.mark.parametrize(
    ("values", "digits", "cell"),
    [
        ([], 1, "-"),
        ([12.34], 1, "12.3"),
        ([1.0, 3.0], 1, "2.0 ± 1.4"),
        ([0.5, 0.75], 3, "0.625 ± 0.177"),
    ],
)
def test_a_cell_is_mean_and_standard_deviation(values: list[float], digits: int, cell: str) -> None:
    assert mean_cell(values, digits) == cell


def test_a_deviation_that_is_not_known_is_left_out() -> None:
    assert spread_cell(2.0, math.nan) == "2.0"
    assert spread_cell(2.0, 0.0) == "2.0 ± 0.0"


def test_a_table_has_a_ruler_below_its_headers() -> None:
    lines = markdown_table(["a", "b"], [["1", "2"], ["3", "4"]])
    assert lines == ["| a | b |", "|---|---|", "| 1 | 2 |", "| 3 | 4 |"]


def test_a_csv_quotes_what_has_a_comma(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["name", "x"], [["a, b", decimals(1 / 3)], ["c", decimals(None)]])
    assert (tmp_path / "t.csv").read_text() == 'name,x\n"a, b",0.3333\nc,\n'
    assert decimals(math.nan) == ""
