"""Tables 1 and 2 of the paper: its figures, and ours beside them, as Markdown and CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avvp_dist.commit import staged
from avvp_dist.evaluation.scores import LEVELS, STREAM_SCORES, Summary

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

_HEADERS = ("Audio", "Visual", "AV", "Type@AV", "Event@AV")


@dataclass(frozen=True)
class TableRow:
    """One line of the tables."""

    method: str
    paper: str
    """The paper's name of it; empty: the paper has no such row."""
    seeds: int
    summary: Mapping[str, Summary]
    """By `segment_audio` and so on; empty while no parser of it is finished."""


def markdown(lines: Sequence[TableRow], caption: str) -> str:
    """Both tables. A cell is mean ± deviation over seeds [95 % interval over clips] (paper)."""
    parts = []
    for number, level in enumerate(LEVELS, 1):
        parts += [
            f"**Table {number}. {level.capitalize()}-level F-scores (%). {caption}**",
            "",
            "| method | seeds | " + " | ".join(_HEADERS) + " |",
            "|---" * (len(_HEADERS) + 2) + "|",
        ]
        for line in lines:
            cells = [_cell(line, f"{level}_{stream}") for stream in STREAM_SCORES]
            parts.append(f"| {line.method} | {line.seeds} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def write_csv(path: Path, lines: Sequence[TableRow], features: str) -> None:
    """One row for each number: level, method, score, seeds, mean, deviation, interval, paper.

    `features` says which features the numbers belong to, and stands in every row.
    """
    with staged(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = ("mean", "deviation", "low_95", "high_95", "paper", "features")
        writer.writerow(["level", "method", "score", "seeds", *columns])
        for level in LEVELS:
            for line in lines:
                for stream in STREAM_SCORES:
                    found = line.summary.get(f"{level}_{stream}")
                    numbers = ["" if math.isnan(x) else f"{x:.4f}" for x in found or ()]
                    paper = _paper(line, f"{level}_{stream}")
                    filled = [*(numbers or [""] * 4), "" if paper is None else paper]
                    writer.writerow([level, line.method, stream, line.seeds, *filled, features])


def _cell(line: TableRow, key: str) -> str:
    found, paper = line.summary.get(key), _paper(line, key)
    cell = "-"
    if found is not None:
        spread = "" if math.isnan(found.deviation) else f" ± {found.deviation:.1f}"
        cell = f"{found.mean:.1f}{spread} [{found.low:.1f}, {found.high:.1f}]"
    return cell if paper is None else f"{cell} ({paper:.1f})"


def _paper(line: TableRow, key: str) -> float | None:
    keys = [f"{level}_{stream}" for level in LEVELS for stream in STREAM_SCORES]
    return PAPER[line.paper][keys.index(key)] if line.paper else None
