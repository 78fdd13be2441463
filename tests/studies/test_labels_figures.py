"""Figures of the label study: a picture, whatever is unfinished."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avvp_dist.studies.labels_figures import corpus_figure, labels_figure


def test_scores_against_labels_are_drawn_for_each_use_of_the_encoders(tmp_path: Path) -> None:
    plain = {"no encoder": {120: [50.0, 52.0], 1200: [70.0, 71.0]}}
    panels = {"frozen": {**plain, "multi": {120: [51.0]}}, "tuned": plain}
    path = labels_figure(tmp_path / "labels.png", panels, ["no encoder"], "title")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_scores_against_clips_are_drawn_with_their_fit(tmp_path: Path) -> None:
    scores = np.array([[60.0, 61.0], [65.0, 64.0]])
    lines = {"multi": ([1000, 4000], scores), "one seed": ([1000, 4000], scores[:, :1])}
    path = corpus_figure(tmp_path / "corpora.png", lines, "title")
    assert path.read_bytes().startswith(b"\x89PNG")
