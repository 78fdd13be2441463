"""Figures of curves and seeds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from avvp_dist.evaluation import figures, grounding_figures, parsing_figures
from tests.evaluation.pictures import assert_png


def test_curves_figure_draws_each_label_in_its_panel(
    tmp_path: Path, written_figures: list[Figure]
) -> None:
    series: dict[str, Any] = {
        "loss": (np.arange(100), np.arange(100) / 7),
        "audio": ([0, 5], [0.5, 0.8]),
        "visual": ([0, 5], [0.5, float("nan")]),
    }
    panels = [("Loss", ["loss"], "loss"), ("AUC", ["audio", "visual"], "area under ROC")]
    path = figures.curves_figure(tmp_path / "curves.png", series, panels, "step", "multi")
    assert_png(path, tmp_path / "curves.png")
    loss, auc = written_figures[0].axes
    assert [line.get_label() for line in loss.lines] == ["loss"]
    assert [line.get_label() for line in auc.lines] == ["audio", "visual"]
    assert (auc.get_title(), auc.get_xlabel(), auc.get_ylabel()) == ("AUC", "step", panels[1][2])
    with pytest.raises(KeyError, match="motion"):
        figures.curves_figure(tmp_path / "x.png", series, [("", ["motion"], "")], "step", "")


def test_seeds_figure_draws_each_value_and_the_mean_of_each_row(
    tmp_path: Path, written_figures: list[Figure]
) -> None:
    panels = {
        "frozen": {"or": [50.0, 54.0], "random": [40.0]},
        "tuned": {"or": [60.0], "random": []},
    }
    path = figures.seeds_figure(tmp_path / "s.png", panels, {"random"}, "F (%)", "study")
    assert_png(path, tmp_path / "s.png")
    frozen: Any
    tuned: Any
    frozen, tuned = written_figures[0].axes
    assert [label.get_text() for label in frozen.get_yticklabels()] == ["or", "random"]
    dots = [points.get_offsets().tolist() for points in frozen.collections[:4]]
    assert dots == [[[50, 0], [54, 0]], [[52, 0]], [[40, 1]], [[40, 1]]]
    colours = {tuple(points.get_facecolor()[0][:3]) for points in frozen.collections[:4]}
    assert len(colours) == 2
    assert sum(len(points.get_offsets()) for points in tuned.collections) == 2


def test_a_title_is_text_and_no_formula() -> None:
    picture = figures.png_of(Figure(), "$\\frac{1}$ a$b_")
    assert picture == figures.png_of(Figure(), "$\\frac{1}$ a$b_") != figures.png_of(Figure(), "")


def test_no_pyplot_state() -> None:
    # pyplot picks a display and keeps every figure alive, which a training rank must not do.
    for module in (figures, grounding_figures, parsing_figures):
        source = Path(str(sys.modules[module.__name__].__file__)).read_text()
        assert "pyplot" not in source
