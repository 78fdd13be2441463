"""Style that all figures share, and figures of curves and seeds.

Every `*_figure` writes one PNG at 140 dpi, makes its folder, and returns its path. `title` should
name the data that the figure shows. The colours are Okabe and Ito's, which the colour-blind can
tell apart.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
BLUE, ORANGE = PALETTE[:2]
MARKERS = "osD^vP"

Floats = NDArray[np.floating]


def curves_figure(
    path: str | os.PathLike[str],
    series: Mapping[str, tuple[Sequence[float] | Floats, Sequence[float] | Floats]],
    panels: Sequence[tuple[str, Sequence[str], str]],
    xlabel: str,
    title: str,
) -> Path:
    """Draw curves of any quantity over steps, two panels beside one another.

    Args:
        series: (x, y) per label; a nan in y leaves a gap.
        panels: title, labels of the series, and y label of each panel.

    Raises:
        KeyError: if `series` lacks a label.
    """
    width, height = min(len(panels), 2), math.ceil(len(panels) / 2)
    figure = Figure(figsize=(4.6 * width + 0.4, 3.4 * height + 0.4), layout="constrained")
    for place, (panel, labels, ylabel) in enumerate(panels, 1):
        axes = figure.add_subplot(height, width, place)
        for number, label in enumerate(labels):
            x, y = series[label]
            axes.plot(
                x,
                y,
                color=PALETTE[number % len(PALETTE)],
                linestyle=("-", "--", ":", "-.")[number % 4],
                # Markers help as long as they do not run into one another.
                marker=MARKERS[number % len(MARKERS)] if len(x) <= 40 else None,
                markersize=4,
                label=label,
            )
        axes.set(title=panel, xlabel=xlabel, ylabel=ylabel)
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)  # steps are whole
        plain_axes(axes)
        axes.legend(frameon=False)
    return save_figure(figure, path, title)


def seeds_figure(
    path: str | os.PathLike[str],
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    controls: Collection[str],
    xlabel: str,
    title: str,
) -> Path:
    """Draw the values of several seeds as small dots and their mean as a large one, row by row.

    Args:
        panels: values of the seeds per panel and row. Every panel has the same rows, drawn from
            the top down; a row without values stays empty.
        controls: rows in another colour.
    """
    names = list(next(iter(panels.values())))
    size = (3.4 + 3.6 * len(panels), 1.8 + 0.3 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    columns = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (panel, rows) in zip(columns, panels.items(), strict=True):
        for place, name in enumerate(names):
            colour, values = ORANGE if name in controls else BLUE, rows[name]
            axes.scatter(values, [place] * len(values), color=colour, s=14, alpha=0.5, linewidths=0)
            if values:
                axes.scatter(np.mean(values), place, color=colour, s=52, zorder=3)
        axes.set(title=panel, xlabel=xlabel)
        plain_axes(axes)
    columns[0].set_yticks(np.arange(len(names)), names)
    columns[0].set_ylim(len(names) - 0.4, -0.6)
    handles = [
        columns[0].scatter([], [], color=colour, s=52, label=label)
        for colour, label in ((BLUE, "grounding"), (ORANGE, "control"))
    ]
    figure.legend(handles=handles, frameon=False, ncols=2, loc="outside lower center")
    return save_figure(figure, path, title)


def plain_axes(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Remove the frame, and put a pale grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: str | os.PathLike[str], title: str) -> Path:
    """Write a figure as PNG with its title; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_of(figure, title))
    return path


def png_of(figure: Figure, title: str) -> bytes:
    """A figure with its title as the bytes of a PNG file."""
    figure.suptitle(title, fontweight="bold", fontsize=11, wrap=True, parse_math=False)
    figure.set_dpi(140)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks
        FigureCanvasAgg(figure).print_png(file)  # Figure.savefig lays out all of it once more
    return file.getvalue()
