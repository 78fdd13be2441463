"""The study of groundings as Markdown and CSV: a row a point, the controls last."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avvp_dist.commit import staged
from avvp_dist.evaluation.scores import LEVELS, STREAM_SCORES

CHOICE = "val/segment_type_av"
"""The score that a point is chosen by."""

_SCORES = {
    "val Type@AV": CHOICE,
    "test A": "test/segment_audio",
    "V": "test/segment_visual",
    "AV": "test/segment_av",
    "Type@AV": "test/segment_type_av",
    "Event@AV": "test/segment_event_av",
    "event-level Type@AV": "test/event_type_av",
}
_FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "components a clip": ("components_per_clip", "{:.2f}".format),
    "one-component clips": ("one_component_share", "{:.1%}".format),
    "positive pairs": ("positive_pair_share", "{:.1%}".format),
}
_TAGS = ("rule", "rate", "grouping", "objective")


@dataclass(frozen=True)
class SeedScores:
    """What one seed's encoder and parser came to."""

    seed: int
    scores: Mapping[str, float]
    """F in percent by `val/segment_audio` and so on, both splits."""
    auc: float | None
    """Held-out AUC of the encoder after pretraining; None without one."""


@dataclass(frozen=True)
class StudyRow:
    """One point of the study."""

    name: str
    control: bool
    tags: Mapping[str, str]
    """Its place in the grid: rule, rate, grouping, objective, those that it has."""
    figures: Mapping[str, float]
    """Of its grounding: `components_per_clip` and so on; empty without one."""
    seeds: tuple[SeedScores, ...]
    """The finished ones."""

    def values(self, key: str) -> list[float]:
        """A score of every seed, in percent."""
        return [one.scores[key] for one in self.seeds]


def ordered(lines: Sequence[StudyRow]) -> list[StudyRow]:
    """The best on validation first, unfinished points after them, controls last."""

    def place(line: StudyRow) -> tuple[bool, float]:
        best = -float(np.mean(line.values(CHOICE))) if line.seeds else 0.0
        return line.control, best

    return sorted(lines, key=place)


def markdown(lines: Sequence[StudyRow], caption: str) -> str:
    """The table; a cell is mean ± deviation (n - 1) over the finished seeds, `-` without any."""
    headers = ["point", "seeds", *_FIGURES, "held-out AUC", *_SCORES]
    rows = [
        f"**Groundings, judged by the parsers over encoders trained on them. {caption}**",
        "",
        "| " + " | ".join(headers) + " |",
        "|---" * len(headers) + "|",
    ]
    for line in ordered(lines):
        name = f"control: {line.name}" if line.control else line.name
        figures = [
            shown(line.figures[key]) if key in line.figures else "-"
            for key, shown in _FIGURES.values()
        ]
        aucs = [one.auc for one in line.seeds if one.auc is not None]
        cells = [_cell(aucs, 3), *(_cell(line.values(key), 1) for key in _SCORES.values())]
        rows.append("| " + " | ".join([name, str(len(line.seeds)), *figures, *cells]) + " |")
    return "\n".join(rows) + "\n"


def write_csv(path: Path, lines: Sequence[StudyRow], features: str) -> None:
    """One row for each point and seed, in the table's order: every score of both splits.

    `features` says which features the numbers belong to, and stands in every row.
    """
    keys = [
        f"{split}/{level}_{stream}"
        for split in ("val", "test")
        for level in LEVELS
        for stream in STREAM_SCORES
    ]
    figures = [key for key, _ in _FIGURES.values()]
    with staged(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = ["point", "control", *_TAGS, "seed", *figures, "heldout_auc", *keys]
        writer.writerow([*columns, "features"])
        for line in ordered(lines):
            for one in line.seeds:
                place = [line.name, int(line.control), *(line.tags.get(tag, "") for tag in _TAGS)]
                found = [line.figures.get(key) for key in figures] + [one.auc]
                numbers = [*found, *(one.scores[key] for key in keys)]
                texts = ["" if number is None else f"{number:.4f}" for number in numbers]
                writer.writerow([*place, one.seed, *texts, features])


def _cell(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"
