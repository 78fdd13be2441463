"""Figures that a test writes, kept to be looked into."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


@pytest.fixture
def written_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures written during the test."""
    written: list[Figure] = []
    print_png = FigureCanvasAgg.print_png

    def keep(canvas: FigureCanvasAgg, *args: Any, **kwargs: Any) -> None:
        written.append(canvas.figure)
        print_png(canvas, *args, **kwargs)

    monkeypatch.setattr(FigureCanvasAgg, "print_png", keep)
    return written
