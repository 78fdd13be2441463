"""The grounding study as Markdown and CSV: one row per point, controls last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avvp_dist.evaluation.scores import LEVELS, SELECTION, STREAM_SCORES
from avvp_dist.reproduction.table_format import (
    MISSING,
    decimals,
    markdown_table,
    mean_cell,
    write_csv,
)

_SCORES = {
    "val Type@AV": f"val/{SELECTION}",
    "test A": "test/segment_audio",
    "V": "test/segment_visual",
    "AV": "test/segment_av",
    "Type@AV": f"test/{SELECTION}",
    "Event@AV": "test/segment_event_av",
    "event-level Type@AV": "test/event_type_av",
}
_FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "components a clip": ("components_per_clip", "{:.2f}".format),
    "one-component clips": ("one_component_share", "{:.1%}".format),
    "positive pairs": ("positive_pair_share", "{:.1%}".format),
}
_KEYS = [f"{level}_{stream}" for level in LEVELS for stream in STREAM_SCORES]
_TAGS = ("rule", "rate", "grouping", "objective")


@dataclass(frozen=True)
class SeedScores:
    """Results of one seed's encoder and parser."""

    seed: int
    scores: Mapping[str, float]
    """F in percent by `val/segment_audio` and so on, for both splits."""
    auc: float | None
    """Held-out AUC of the encoder after pretraining; None without an encoder."""


@dataclass(frozen=True)
class StudyRow:
    """One point of the study."""

    name: str
    control: bool
    tags: Mapping[str, str]
    """Its place in the grid: rule, rate, grouping, objective, as far as they apply."""
    figures: Mapping[str, float]
    """Statistics of its grounding: `components_per_clip` and so on; empty without one."""
    seeds: tuple[SeedScores, ...]
    """Results of the finished seeds."""

    def values(self, key: str) -> list[float]:
        """One score of every seed, in percent."""
        return [seed.scores[key] for seed in self.seeds]


def ordered(rows: Sequence[StudyRow]) -> list[StudyRow]:
    """Rows with the best on validation first, unfinished points after them, controls last."""

    def place(row: StudyRow) -> tuple[bool, float]:
        return row.control, -float(np.mean(row.values(f"val/{SELECTION}"))) if row.seeds else 0.0

    return sorted(rows, key=place)


def markdown(rows: Sequence[StudyRow], caption: str) -> str:
    """The table; a cell is mean ± standard deviation over the finished seeds."""
    cells = []
    for row in ordered(rows):
        figures = [
            shown(row.figures[key]) if key in row.figures else MISSING
            for key, shown in _FIGURES.values()
        ]
        aucs = [seed.auc for seed in row.seeds if seed.auc is not None]
        scores = [mean_cell(row.values(key)) for key in _SCORES.values()]
        name = f"control: {row.name}" if row.control else row.name
        cells.append([name, str(len(row.seeds)), *figures, mean_cell(aucs, 3), *scores])
    lines = [
        f"**Groundings, judged by the parsers over encoders trained on them. {caption}**",
        "",
        *markdown_table(["point", "seeds", *_FIGURES, "held-out AUC", *_SCORES], cells),
    ]
    return "\n".join(lines) + "\n"


def write_table(path: Path, rows: Sequence[StudyRow], features: str) -> None:
    """Write a CSV row for each point and seed, in the table's order: every score of both splits.

    Args:
        features: which features the numbers belong to; stands in every row.
    """
    keys = ["/".join((split, key)) for split in ("val", "test") for key in _KEYS]
    figures = [key for key, _ in _FIGURES.values()]
    lines = []
    for row in ordered(rows):
        tags = [row.tags.get(tag, "") for tag in _TAGS]
        for seed in row.seeds:
            numbers = [*(row.figures.get(key) for key in figures), seed.auc]
            numbers += [seed.scores[key] for key in keys]
            texts = [decimals(number) for number in numbers]
            lines.append([row.name, int(row.control), *tags, seed.seed, *texts, features])
    columns = ["point", "control", *_TAGS, "seed", *figures, "heldout_auc", *keys, "features"]
    write_csv(path, columns, lines)
