"""Figures of classes and of one clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.evaluation import parsing_figures as figures
from avvp_dist.shards.schema import LLP_CLASSES
from tests.evaluation.pictures import assert_png, texts


def crosses(axes: Any) -> list[int]:
    """Crosses left of 0 by model."""
    return [
        len(points.get_offsets())
        for points in axes.collections
        if hasattr(points, "get_sizes") and (np.asarray(points.get_offsets())[:, 0] < 0).any()
    ]


def test_class_figure_sorts_and_marks_missing(
    tmp_path: Path, written_figures: list[Figure]
) -> None:
    nan = float("nan")
    scores = {"HAN": np.array([50, nan, nan, 60.0]), "ours": np.array([20, nan, 90, 70.0])}
    path = figures.class_figure(tmp_path / "f.png", LLP_CLASSES[:4], scores, "test, segment audio")
    assert_png(path, tmp_path / "f.png")
    axes: Any = written_figures[0].axes[0]
    bottom_up = [label.get_text() for label in axes.get_yticklabels()]
    assert bottom_up == ["Car", "Speech", "Dog", "Cheering"]
    assert crosses(axes) == [2, 1]
    assert "neither true nor predicted" in texts(written_figures[0])


def test_comparison_figure_has_one_order_and_one_legend(
    tmp_path: Path, written_figures: list[Figure]
) -> None:
    nan = float("nan")
    panels = {
        "audio": {"HAN": np.array([90, nan, 20.0]), "ours": np.array([80, nan, 40.0])},
        # Models in another order keep their colours.
        "visual": {"ours": np.array([10, 60, nan]), "HAN": np.array([10, 70, 50.0])},
    }
    path = figures.comparison_figure(tmp_path / "c.png", LLP_CLASSES[:3], panels, "test, segments")
    assert_png(path, tmp_path / "c.png")
    axes: list[Any] = written_figures[0].axes
    assert [panel.get_title() for panel in axes] == ["audio", "visual"]
    # Means 47.5, 65 and 36.7, over what is known.
    bottom_up = [label.get_text() for label in axes[0].get_yticklabels()]
    assert bottom_up == ["Cheering", "Speech", "Car"]
    expected = [{"HAN": [20, 90, nan], "ours": [40, 80, nan]}]
    expected += [{"HAN": [50, 10, 70], "ours": [nan, 10, 60]}]
    colours = set()
    for panel, rows in zip(axes, expected, strict=True):
        for dots in panel.collections:
            if dots.get_label() in rows:
                x, y = np.ma.filled(dots.get_offsets(), nan).T
                np.testing.assert_array_equal(x, rows[dots.get_label()])
                known = np.flatnonzero(~np.isnan(x))
                np.testing.assert_array_equal(np.round(y[known]), known)
                colours.add((dots.get_label(), dots.get_facecolor().tobytes()))
    assert len(colours) == 2
    assert [crosses(panel) for panel in axes] == [[1, 1], [1]]
    (legend,) = written_figures[0].legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["HAN", "ours", "neither true nor predicted"]
    assert not any(panel.get_legend() for panel in axes)


def test_comparison_figure_refuses_panels_of_other_models(tmp_path: Path) -> None:
    one = np.ones(1)
    panels = {"audio": {"HAN": one}, "visual": {"HAN": one, "ours": one}}
    with pytest.raises(KeyError, match="ours"):
        figures.comparison_figure(tmp_path / "c.png", LLP_CLASSES[:1], panels, "test")


def test_event_counts_counts_clips_and_asks_for_one_second_of_both() -> None:
    events = np.zeros((3, 4, 2, 2), dtype=bool)
    events[0, :, 0, 0] = True  # heard, in four seconds of one clip
    events[1, :2, 0, 0] = True  # heard and then seen
    events[1, 2:, 1, 0] = True
    events[2, :2, 0, 1] = True  # heard and seen in second 1
    events[2, 1:, 1, 1] = True
    counts = figures.event_counts(events)
    assert {kind: number.tolist() for kind, number in counts.items()} == {
        "audio": [2, 1],
        "visual": [1, 1],
        "audio-visual": [0, 1],
    }


def test_distribution_figure_sorts_and_shows_none(
    tmp_path: Path, written_figures: list[Figure]
) -> None:
    counts = {"audio": np.array([3, 600, 0]), "visual": np.array([9, 140, 1])}
    path = figures.distribution_figure(tmp_path / "d.png", LLP_CLASSES[:3], counts, "test")
    assert_png(path, tmp_path / "d.png")
    axes: Any = written_figures[0].axes[0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["Car", "Speech", "Cheering"]
    lines = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
    assert lines == {"audio": [600, 3, 0], "visual": [140, 9, 1]}
    low, high = axes.get_ylim()
    assert low < 0 and high > 600
    assert {"audio", "visual", "0", "100", "test"} <= texts(written_figures[0])


@pytest.mark.shared
def test_distribution_of_llp(shared: Path, tmp_path: Path, written_figures: list[Figure]) -> None:
    test = read_annotations(shared / "llp", "test")
    assert test.events is not None
    counts = figures.event_counts(test.events)
    # The paper: about 600 clips with speech to be heard, far fewer with it to be seen.
    speech = {kind: int(number[0]) for kind, number in counts.items()}
    assert speech == {"audio": 620, "visual": 142, "audio-visual": 140}
    assert (counts["audio-visual"] <= np.minimum(counts["audio"], counts["visual"])).all()
    path = figures.distribution_figure(tmp_path / "d.png", test.classes, counts, "LLP, test")
    assert_png(path, tmp_path / "d.png")
    names = [label.get_text() for label in written_figures[0].axes[0].get_xticklabels()]
    assert (names[0], names[-1]) == ("Speech", "Telephone bell ringing")


def test_timeline_figure_shows_what_occurs(tmp_path: Path, written_figures: list[Figure]) -> None:
    truth, predicted = np.zeros((2, 10, 2, 25), dtype=bool)
    truth[2:5, 0, 3] = True
    predicted[4:, 1, 5] = True
    prob = np.full((10, 2, 25), 0.1, dtype=np.float32)
    prob[0, 0, 24] = 0.4
    path = figures.timeline_figure(
        tmp_path / "t.png", LLP_CLASSES, truth, prob, predicted, "test, x_0_10"
    )
    assert_png(path, tmp_path / "t.png")
    axes = written_figures[0].axes[0]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["Dog", "Frying (food)", "Clapping"]
    assert axes.get_xlim() == (0, 10)
    spans = {
        tuple(box.get_extents().intervalx)
        for bars in axes.collections
        for box in bars.get_paths()
        if type(bars).__name__ == "PolyCollection"
    }
    assert spans == {(2, 5), (4, 10)}


def test_timeline_figure_without_events_shows_the_most_probable_class(
    tmp_path: Path, written_figures: list[Figure]
) -> None:
    nothing = np.zeros((4, 2, 25), dtype=bool)
    prob = np.zeros((4, 2, 25), dtype=np.float32)
    prob[1, 1, 7] = 0.3
    figures.timeline_figure(tmp_path / "t.png", LLP_CLASSES, nothing, prob, nothing, "test")
    assert [label.get_text() for label in written_figures[0].axes[0].get_yticklabels()] == [
        "Fire alarm"
    ]
