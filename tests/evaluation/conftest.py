"""Figures that a test writes, kept to be looked into."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def written_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures written during the test."""
    written: list[Figure] = []
    savefig = Figure.savefig

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        written.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return written
