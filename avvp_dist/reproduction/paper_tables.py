"""Tables 1 and 2 of the paper: its numbers, and ours beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from avvp_dist.evaluation.scores import LEVELS, STREAM_SCORES, Summary
from avvp_dist.reproduction.table_format import (
    MISSING,
    decimals,
    markdown_table,
    spread_cell,
    write_csv,
)

PAPER: dict[str, tuple[float, ...]] = {
    "HAN": (60.1, 52.9, 48.9, 54.0, 55.4, 51.3, 48.9, 43.0, 47.7, 48.0),
    "MA": (60.3, 60.0, 55.1, 58.9, 57.9, 53.6, 56.4, 49.0, 53.0, 50.6),
    "Base": (60.0, 52.6, 48.4, 53.7, 54.8, 51.9, 48.5, 41.9, 47.4, 49.5),
    "Base+GCAA": (62.0, 53.4, 48.9, 54.8, 56.3, 53.4, 48.9, 42.0, 48.1, 50.7),
    "Base+Adv+Skip": (61.5, 53.3, 48.8, 54.5, 56.0, 53.4, 48.8, 42.0, 48.0, 50.5),
    "Base+Adv+Skip+GCAA": (61.6, 54.7, 50.3, 55.5, 56.1, 53.7, 50.5, 43.5, 49.2, 50.9),
    "Pretrain (uni)": (59.8, 54.7, 49.4, 54.7, 56.2, 50.8, 51.5, 42.9, 48.4, 49.3),
    "Pretrain (cross)": (60.3, 55.1, 49.9, 55.1, 56.4, 52.3, 52.1, 43.9, 49.4, 50.4),
    "Pretrain (multi)": (60.8, 54.8, 50.0, 55.2, 56.2, 53.4, 51.6, 44.3, 49.8, 51.2),
}
"""F in percent on the LLP test set, in the order of LEVELS x STREAM_SCORES (Tables 1 and 2)."""

_KEYS = [f"{level}_{stream}" for level in LEVELS for stream in STREAM_SCORES]
_HEADERS = ("Audio", "Visual", "AV", "Type@AV", "Event@AV")


@dataclass(frozen=True)
class TableRow:
    """One row of both tables."""

    method: str
    paper: str
    """Name of the row in the paper; empty: the paper has no such row."""
    seeds: int
    summary: Mapping[str, Summary]
    """By `segment_audio` and so on; empty while no parser of the row is finished."""

    def cell(self, key: str) -> str:
        """`mean ± deviation over seeds [95 % interval over clips] (the paper's number)`."""
        cell = MISSING
        if (scored := self.summary.get(key)) is not None:
            spread = spread_cell(scored.mean, scored.standard_deviation)
            cell = f"{spread} [{scored.low:.1f}, {scored.high:.1f}]"
        published = self.published(key)
        return cell if published is None else f"{cell} ({published:.1f})"

    def published(self, key: str) -> float | None:
        """The paper's number, F in percent; None if the paper has no such row."""
        return PAPER[self.paper][_KEYS.index(key)] if self.paper else None


def markdown(rows: Sequence[TableRow], caption: str) -> str:
    """Both tables, segment level and event level."""
    lines = []
    for number, level in enumerate(LEVELS, 1):
        cells = (
            [row.method, str(row.seeds), *(row.cell(f"{level}_{s}") for s in STREAM_SCORES)]
            for row in rows
        )
        lines += [
            f"**Table {number}. {level.capitalize()}-level F-scores (%). {caption}**",
            "",
            *markdown_table(("method", "seeds", *_HEADERS), cells),
            "",
        ]
    return "\n".join(lines)


def write_table(path: Path, rows: Sequence[TableRow], features: str) -> None:
    """Write a CSV row for each number: level, method, score, seeds, mean, deviation, interval.

    Args:
        features: which features the numbers belong to; stands in every row.
    """
    columns = ("mean", "deviation", "low_95", "high_95", "paper", "features")
    lines = []
    for level, row, score in product(LEVELS, rows, STREAM_SCORES):
        key = f"{level}_{score}"
        numbers = [decimals(number) for number in row.summary.get(key, [None] * 4)]
        published = row.published(key)
        paper = "" if published is None else published
        lines.append([level, row.method, score, row.seeds, *numbers, paper, features])
    write_csv(path, ("level", "method", "score", "seeds", *columns), lines)
