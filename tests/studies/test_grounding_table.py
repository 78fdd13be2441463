"""The table of the grounding study: its order, its cells and its CSV."""

from __future__ import annotations

import csv
from pathlib import Path

from avvp_dist.evaluation.scores import LEVELS, SELECTION, STREAM_SCORES
from avvp_dist.studies.grounding_table import (
    SeedScores,
    StudyRow,
    markdown,
    ordered,
    write_table,
)

CHOICE = f"val/{SELECTION}"
KEYS = [f"{s}/{level}_{x}" for s in ("val", "test") for level in LEVELS for x in STREAM_SCORES]


def row(name: str, *choices: float, control: bool = False, auc: float | None = 0.5) -> StudyRow:
    """A row whose scores are 1, but for those it is chosen by: one per seed."""
    seeds = tuple(
        SeedScores(number, {**dict.fromkeys(KEYS, 1.0), CHOICE: choice}, auc)
        for number, choice in enumerate(choices, 1)
    )
    figures = {"components_per_clip": 2.5, "one_component_share": 0.25, "positive_pair_share": 0.1}
    return StudyRow(name, control, {"rule": "or"}, {} if control else figures, seeds)


ROWS = [
    row("control", 90.0, 92.0, control=True, auc=None),
    row("unfinished"),
    row("worse", 40.0, 50.0),
    row("better", 60.0, 62.0),
]


def test_the_best_on_validation_stands_first_and_controls_last() -> None:
    assert [one.name for one in ordered(ROWS)] == ["better", "worse", "unfinished", "control"]


def test_a_cell_leaves_out_what_is_not_there() -> None:
    lines = markdown(ROWS, "Caption").splitlines()
    assert lines[0].endswith("Caption**")
    cells = {line.split(" | ")[0]: line.strip("| ").split(" | ")[1:] for line in lines[4:]}
    assert cells["| better"][:6] == ["2", "2.50", "25.0%", "10.0%", "0.500 ± 0.000", "61.0 ± 1.4"]
    assert cells["| unfinished"] == ["0", "2.50", "25.0%", "10.0%", *["-"] * 8]
    assert cells["| control: control"][:6] == ["2", "-", "-", "-", "-", "91.0 ± 1.4"]


def test_the_csv_has_a_row_for_each_seed(tmp_path: Path) -> None:
    write_table(tmp_path / "study.csv", ROWS, "Simulated features")
    with (tmp_path / "study.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(one["point"], one["seed"]) for one in rows] == [
        (name, seed) for name in ("better", "worse", "control") for seed in ("1", "2")
    ]
    assert (rows[0][CHOICE], rows[0]["rule"], rows[0]["rate"]) == ("60.0000", "or", "")
    assert (rows[4]["control"], rows[4]["heldout_auc"]) == ("1", "")
    assert {one["features"] for one in rows} == {"Simulated features"}
