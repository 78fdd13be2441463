"""Figures of the label study: scores against labels, and against the pretraining's clips."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from avvp_dist.evaluation.figures import MARKERS, PALETTE, plain_axes, save_figure
from avvp_dist.evaluation.paired import power_law

Floats = NDArray[np.float64]
_GREYS = ("0.15", "0.55")


def labels_figure(
    path: Path,
    panels: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]],
    controls: Collection[str],
    title: str,
) -> Path:
    """Draw scores against the number of labelled clips: means, and bands of a standard deviation.

    Args:
        panels: scores of the seeds by use of the encoder, name and number of labels.
        controls: names that are drawn dashed, in grey.
    """
    figure = Figure(figsize=(3.0 + 3.8 * len(panels), 4.6), layout="constrained")
    columns = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    styles = _styles(list(dict.fromkeys(n for lines in panels.values() for n in lines)), controls)
    for axes, (use, lines) in zip(columns, panels.items(), strict=True):
        for name, scores in lines.items():
            x = np.array(sorted(scores))
            means = np.array([np.mean(scores[n]) for n in x])
            deviations = np.array([np.std(scores[n], ddof=len(scores[n]) > 1) for n in x])
            colour, dashed, marker = styles[name]
            line = "--" if dashed else "-"
            axes.plot(x, means, color=colour, linestyle=line, marker=marker, markersize=5)
            axes.fill_between(
                x, means - deviations, means + deviations, color=colour, alpha=0.1, linewidth=0
            )
        axes.set(title=use, xscale="log", xlabel="labelled clips")
        axes.xaxis.set_major_locator(
            FixedLocator(sorted({n for one in lines.values() for n in one}))
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        plain_axes(axes)
    columns[0].set_ylabel("test segment Type@AV (%)")
    handles = [
        Line2D(
            [],
            [],
            color=colour,
            linestyle="--" if dashed else "-",
            marker=marker,
            markersize=5,
            label=name,
        )
        for name, (colour, dashed, marker) in styles.items()
    ]
    figure.legend(handles=handles, frameon=False, loc="outside right center", fontsize=8)
    return save_figure(figure, path, title)


def _styles(names: Sequence[str], controls: Collection[str]) -> dict[str, tuple[str, bool, str]]:
    """Colour of each name, whether its line is dashed, and its marker."""
    own, greys = itertools.cycle(zip(PALETTE, MARKERS, strict=True)), itertools.cycle(_GREYS)
    styles = {}
    for name in names:
        if name in controls:
            styles[name] = (next(greys), True, "x")
        else:
            colour, marker = next(own)
            styles[name] = (colour, False, marker)
    return styles


def corpus_figure(
    path: Path, lines: Mapping[str, tuple[Sequence[int], Floats]], title: str
) -> Path:
    """Draw scores against the clips of the pretraining, with the power law that is fitted to them.

    Args:
        lines: number of clips of each corpus and scores `[corpora, seeds]`, by name.
    """
    figure = Figure(figsize=(8.6, 5.0), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, (clips, scores)) in enumerate(lines.items()):
        colour, x = PALETTE[number % len(PALETTE)], np.array(clips)
        deviations = scores.std(1, ddof=scores.shape[1] > 1)
        axes.errorbar(
            x, scores.mean(1), deviations, color=colour, fmt=MARKERS[number % 6], label=name
        )
        law, reach = power_law(clips, scores), np.geomspace(x[0], 4 * x[-1], 40)
        middle, low, high = np.array([law.score(one) for one in reach]).T
        axes.plot(reach, middle, color=colour, linewidth=1)
        axes.fill_between(reach, low, high, color=colour, alpha=0.1, linewidth=0)
    axes.set(xscale="log", xlabel="clips of the pretraining", ylabel="test segment Type@AV (%)")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    plain_axes(axes)
    figure.legend(frameon=False, loc="outside right center", fontsize=8)
    return save_figure(figure, path, title)
