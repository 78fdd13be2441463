"""Figures of similarities and components."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from avvp_dist.evaluation.grounding_figures import component_figure, similarity_figure
from tests.evaluation.pictures import assert_png, texts


def test_similarity_figure_labels_each_threshold(
    tmp_path: Path, written_figures: list[Figure]
) -> None:
    edges = np.linspace(-1, 1, 41)
    rng = np.random.default_rng(0)
    within, across = rng.integers(0, 90, (2, 40))
    empty = np.zeros(40, dtype=int)
    path = similarity_figure(
        tmp_path / "new" / "similarity.png",
        {"audio": (edges, within, across), "visual": (edges, empty, empty)},
        {"audio": 0.42},
        "train",
    )
    assert_png(path, tmp_path / "new" / "similarity.png")
    assert {"train", "audio", "visual", "threshold 0.42"} <= texts(written_figures[0])
    audio: Any = written_figures[0].axes[0]
    assert [line.get_xdata()[0] for line in audio.lines] == [0.42]
    assert audio.get_ylabel() == "fraction of pairs"
    sums = [patch.get_data().values.sum() for patch in audio.patches]
    assert sums == pytest.approx([1] * 4)


def test_component_figure_keeps_rare_bars_visible(
    tmp_path: Path, written_figures: list[Figure]
) -> None:
    sizes = np.array([900, 99, 1, 0])
    path = component_figure(tmp_path / "c.png", sizes, sizes[::-1], "train, rule or")
    assert_png(path, tmp_path / "c.png")
    left: Any
    left, right = written_figures[0].axes
    assert [bar.get_height() for bar in left.patches] == sizes.tolist()
    assert [label.get_text() for label in left.texts] == ["90 %", "10 %", "<1 %", ""]
    assert (left.get_title(), right.get_title()) == ("1,000 components", "1,000 clips")


def test_component_figure_draws_fractions_beside(
    tmp_path: Path, written_figures: list[Figure]
) -> None:
    sizes, fractions = np.array([3, 1]), {"positive pairs": 0.5, "audio": 0.0002, "visual": 0.0}
    component_figure(tmp_path / "c.png", sizes, sizes, "train", fractions)
    third: Any = written_figures[0].axes[2]
    assert [label.get_text() for label in third.get_yticklabels()] == list(fractions)[::-1]
    assert [label.get_text() for label in third.texts] == ["0.0 %", "<0.1 %", "50.0 %"]
