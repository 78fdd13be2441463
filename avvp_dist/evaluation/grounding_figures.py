"""Figures of grounding: similarities with their thresholds, and components."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from avvp_dist.evaluation.figures import (
    BLUE,
    ORANGE,
    PALETTE,
    Floats,
    plain_axes,
    save_figure,
)


def similarity_figure(
    path: str | os.PathLike[str],
    histograms: Mapping[str, tuple[Floats, NDArray[np.number], NDArray[np.number]]],
    thresholds: Mapping[str, float],
    title: str,
) -> Path:
    """Draw the distributions of cosines within a clip and across clips, one panel per stream.

    Args:
        histograms: (edges `[K+1]`, pairs within a clip `[K]`, pairs across clips `[K]`) per stream.
            Both distributions are drawn as fractions of their own sum.
        thresholds: threshold per stream (v_t and a_t of Algorithm 1), drawn where given.
    """
    figure = Figure(figsize=(4.6 * len(histograms) + 0.4, 3.8), layout="constrained")
    panels = figure.subplots(1, len(histograms), squeeze=False)[0]
    for axes, (stream, (edges, within, across)) in zip(panels, histograms.items(), strict=True):
        for counts, colour, label in (
            (across, ORANGE, "across clips"),
            (within, BLUE, "within a clip"),
        ):
            fraction = counts / max(counts.sum(), 1)
            axes.stairs(fraction, edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(fraction, edges, color=colour, linewidth=1.6, label=label)
        occupied = np.flatnonzero(np.asarray(within) + np.asarray(across))
        limits = [*edges[occupied], *edges[occupied + 1]]
        if stream in thresholds:
            threshold = thresholds[stream]
            limits.append(threshold)
            axes.axvline(
                threshold, color="black", linestyle="--", label=f"threshold {threshold:.3g}"
            )
        if limits:
            axes.set_xlim(min(limits), max(limits))
        axes.set(title=stream, xlabel="cosine of two snippets", ylabel="fraction of pairs")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        plain_axes(axes)
        axes.legend(frameon=False)
    return save_figure(figure, path, title)


def component_figure(
    path: str | os.PathLike[str],
    sizes: NDArray[np.integer],
    counts: NDArray[np.integer],
    title: str,
    fractions: Mapping[str, float] | None = None,
) -> Path:
    """Draw the sizes of components and the number of components in a clip.

    Args:
        sizes: number of components of 1..T snippets, `[T]`.
        counts: number of clips with 1..T components, `[T]`.
        fractions: fractions drawn as bars in a third panel, the first on top.
    """
    width = 14.4 if fractions else 9.6
    figure = Figure(figsize=(width, 3.8))
    # Places in inches, because an automatic layout draws everything twice.
    places = ((1.0, 3.6), (5.7, 3.6), (11.2, 3.0))[: 3 if fractions else 2]
    left, right, *third = (
        figure.add_axes((start / width, 0.15, size / width, 0.66)) for start, size in places
    )
    for axes, values, colour, xlabel, unit in (
        (left, sizes, BLUE, "snippets in a component", "components"),
        (right, counts, ORANGE, "components in a clip", "clips"),
    ):
        total = int(values.sum())
        bars = axes.bar(np.arange(1, len(values) + 1), values, color=colour, width=0.8)
        texts = [_percent(value, total) for value in values.tolist()]
        axes.bar_label(bars, texts, padding=2, fontsize=8)
        axes.margins(y=0.12)
        axes.set(title=f"{total:,} {unit}", xlabel=xlabel, ylabel=f"number of {unit}")
        axes.set_xticks(np.arange(1, len(values) + 1))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        plain_axes(axes, grid="y")
    if fractions:
        _fraction_bars(third[0], fractions)
    return save_figure(figure, path, title)


def _fraction_bars(axes: Axes, fractions: Mapping[str, float]) -> None:
    """Draw a bar for each fraction, the first on top."""
    names, values = list(fractions)[::-1], list(fractions.values())[::-1]
    bars = axes.barh(np.arange(len(names)), values, color=PALETTE[2], height=0.7)
    texts = [f"{100 * v:.1f} %" if v == 0 or v >= 0.001 else "<0.1 %" for v in values]
    axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.set_yticks(np.arange(len(names)), names, fontsize=8)
    axes.set(title="fractions", xlim=(0, 1.15))
    axes.set_xticks([0, 0.5, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    plain_axes(axes, grid="x")


def _percent(part: int, total: int) -> str:
    """Label of a fraction; a positive one that rounds to 0 must not read as 0."""
    percent = 100 * part / max(total, 1)
    return "" if part == 0 else "<1 %" if percent < 1 else f"{percent:.0f} %"
