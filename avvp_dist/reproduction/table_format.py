"""Tables as Markdown and CSV, with cells that are a mean and its standard deviation over seeds."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from avvp_dist.commit import staged

MISSING = "-"
"""Cell without a number."""


def mean_cell(values: Sequence[float], digits: int = 1) -> str:
    """`mean ± standard deviation` (n - 1) of the seeds' values; `-` without any."""
    if not values:
        return MISSING
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return spread_cell(float(np.mean(values)), deviation, digits)


def spread_cell(mean: float, deviation: float, digits: int = 1) -> str:
    """`mean ± deviation`, or the mean alone if the deviation is not a number."""
    spread = "" if math.isnan(deviation) else f" ± {deviation:.{digits}f}"
    return f"{mean:.{digits}f}{spread}"


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [_markdown_row(headers), "|---" * len(headers) + "|"]
    return [*lines, *map(_markdown_row, rows)]


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file whole or not at all."""
    with staged(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def decimals(number: float | None) -> str:
    """A number of a CSV file, to four decimals; empty if there is none or it is not a number."""
    return "" if number is None or math.isnan(number) else f"{number:.4f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
