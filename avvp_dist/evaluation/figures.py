"""Figures: similarity and components of the grounding, training curves, per-class F, timelines.

Every function writes one PNG at 140 dpi, making its folder, and returns its path. `title` should
say which data the figure shows. The colours are Okabe and Ito's, told apart by the colour-blind.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
BLUE, ORANGE = PALETTE[:2]
MARKERS = "osD^vP"

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]


def similarity_figure(
    path: str | os.PathLike[str],
    histograms: Mapping[str, tuple[Floats, NDArray[np.number], NDArray[np.number]]],
    thresholds: Mapping[str, float],
    title: str,
) -> Path:
    """Cosine of snippet pairs within a clip and across clips, one panel a stream.

    `histograms[stream]` is (edges `[K+1]`, within `[K]`, across `[K]`), counts of pairs; each
    distribution is drawn as shares of its own sum. `thresholds[stream]` (v_t and a_t of
    Algorithm 1) is drawn and labelled where given.
    """
    figure = Figure(figsize=(4.6 * len(histograms) + 0.4, 3.8), layout="constrained")
    panels = figure.subplots(1, len(histograms), squeeze=False)[0]
    for axes, (stream, (edges, within, across)) in zip(panels, histograms.items(), strict=True):
        for counts, colour, label in (
            (across, ORANGE, "across clips"),
            (within, BLUE, "within a clip"),
        ):
            share = counts / max(counts.sum(), 1)
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(share, edges, color=colour, linewidth=1.6, label=label)
        held = np.flatnonzero(np.asarray(within) + np.asarray(across))
        shown = [*edges[held], *edges[held + 1]]
        if stream in thresholds:
            threshold = thresholds[stream]
            shown.append(threshold)
            axes.axvline(
                threshold, color="black", linestyle="--", label=f"threshold {threshold:.3g}"
            )
        if shown:
            axes.set_xlim(min(shown), max(shown))
        axes.set(title=stream, xlabel="cosine of two snippets", ylabel="share of pairs")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        _plain(axes)
        axes.legend(frameon=False)
    return _save(figure, path, title)


def component_figure(
    path: str | os.PathLike[str],
    sizes: NDArray[np.integer],
    counts: NDArray[np.integer],
    title: str,
) -> Path:
    """How large components are and how many a clip has.

    `sizes` `[T]`: number of components of 1..T snippets; `counts` `[T]`: number of clips with
    1..T components. Bars carry their share of the panel's total.
    """
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, values, colour, xlabel, things in (
        (left, sizes, BLUE, "snippets in a component", "components"),
        (right, counts, ORANGE, "components in a clip", "clips"),
    ):
        total = int(values.sum())
        bars = axes.bar(np.arange(1, len(values) + 1), values, color=colour, width=0.8)
        shares = [_percent(value, total) for value in values.tolist()]
        axes.bar_label(bars, shares, padding=2, fontsize=8)
        axes.margins(y=0.12)
        axes.set(title=f"{total:,} {things}", xlabel=xlabel, ylabel=f"number of {things}")
        axes.set_xticks(np.arange(1, len(values) + 1))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        _plain(axes, grid="y")
    return _save(figure, path, title)


def curves_figure(
    path: str | os.PathLike[str],
    series: Mapping[str, tuple[Sequence[float] | Floats, Sequence[float] | Floats]],
    panels: Sequence[tuple[str, Sequence[str], str]],
    xlabel: str,
    title: str,
) -> Path:
    """Loss, AUC or any other curves; `series[label]` is (x, y), nan in y leaves a gap.

    A panel is (its title, the labels it shows, its y label). Raises `KeyError` for a label that
    `series` lacks.
    """
    figure = Figure(figsize=(4.6 * len(panels) + 0.4, 3.8), layout="constrained")
    columns = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (panel, labels, ylabel) in zip(columns, panels, strict=True):
        for number, label in enumerate(labels):
            x, y = series[label]
            axes.plot(
                x,
                y,
                color=PALETTE[number % len(PALETTE)],
                linestyle=("-", "--", ":", "-.")[number % 4],
                # Single measurements are worth seeing until they run into one another.
                marker=MARKERS[number % len(MARKERS)] if len(x) <= 40 else None,
                markersize=4,
                label=label,
            )
        axes.set(title=panel, xlabel=xlabel, ylabel=ylabel)
        _plain(axes)
        axes.legend(frameon=False)
    return _save(figure, path, title)


def class_figure(
    path: str | os.PathLike[str],
    classes: Sequence[str],
    scores: Mapping[str, Floats],
    title: str,
) -> Path:
    """F of each class in percent, `scores[model]` `[C]`, one row a class, best mean on top.

    A nan (the class occurs neither in truth nor in the prediction) is a cross left of 0.
    """
    values = np.stack([np.asarray(score, dtype=np.float64) for score in scores.values()])
    known = ~np.isnan(values)
    mean = np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    order = np.argsort(np.where(known.any(axis=0), mean, -1), kind="stable").tolist()
    rows = np.arange(len(classes))
    figure = Figure(figsize=(7.2, 1.6 + 0.27 * len(classes)), layout="constrained")
    axes = figure.subplots()
    # Dots of one row stand a little apart, so that equal scores stay visible.
    lanes = np.linspace(0.18, -0.18, len(scores)) if len(scores) > 1 else np.zeros(1)
    for number, (model, score) in enumerate(zip(scores, values[:, order], strict=True)):
        colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        y = rows + lanes[number]
        axes.hlines(y, 0, score, color=colour, linewidth=1, alpha=0.5)
        axes.scatter(score, y, color=colour, marker=marker, s=26, label=model, zorder=3)
        missing = np.isnan(score)
        axes.scatter(np.full(missing.sum(), -2.5), y[missing], color=colour, marker="x", s=16)
    if not known.all():
        axes.scatter([], [], color="grey", marker="x", s=16, label="neither true nor predicted")
    axes.set_yticks(rows, [_plain_name(classes[row]) for row in order])
    axes.set(xlabel="F-score (%)", xlim=(-4, 101.5), ylim=(-0.6, len(classes) - 0.4))
    _plain(axes, grid="x")
    axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return _save(figure, path, title)


def timeline_figure(
    path: str | os.PathLike[str],
    classes: Sequence[str],
    truth: Mask,
    frame_prob: Floats,
    predicted: Mask,
    title: str,
) -> Path:
    """One clip: truth and prediction bool `[T, 2, C]`, snippet probability float `[T, 2, C]`.

    A row for each class in truth or prediction and for the most probable one; in it a lane for
    audio (above) and for visual: true events outlined, predicted ones filled, probability as a
    strip below them.
    """
    probable = int(frame_prob.max(axis=(0, 1)).argmax())
    occurring = np.flatnonzero((truth | predicted).any(axis=(0, 1)))
    rows = sorted({probable, *occurring.tolist()})
    snippets = len(truth)
    figure = Figure(figsize=(8.4, 2.0 + 0.8 * len(rows)), layout="constrained")
    axes = figure.subplots()
    lanes = []
    for row, label in enumerate(rows):
        for stream, colour in enumerate((BLUE, ORANGE)):
            # Lanes are 0.34 high, y grows downwards: bars on 0.24 of it, the strip on the rest.
            top = row - 0.41 + 0.48 * stream
            lanes.append(top + 0.17)
            strip = axes.pcolormesh(
                np.arange(snippets + 1),
                [top + 0.26, top + 0.34],
                frame_prob[None, :, stream, label],
                cmap="Greys",
                vmin=0,
                vmax=1,
            )
            axes.broken_barh(_runs(predicted[:, stream, label]), (top, 0.24), color=colour)
            axes.broken_barh(
                _runs(truth[:, stream, label]),
                (top - 0.02, 0.38),
                facecolor="none",
                edgecolor="black",
                linewidth=1.8,
                clip_on=False,
            )
    axes.set_yticks(np.arange(len(rows)), [_plain_name(classes[row]) for row in rows])
    axes.set_yticks(lanes, ["audio", "visual"] * len(rows), minor=True, fontsize=8, color="0.35")
    axes.tick_params(axis="y", which="major", pad=42, length=0)
    axes.tick_params(axis="y", which="minor", length=0)
    axes.set(xlabel="time (s)", xlim=(0, snippets), ylim=(len(rows) - 0.5, -0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.hlines(np.arange(1, len(rows)) - 0.5, 0, snippets, color="0.8", linewidth=0.8)
    _plain(axes, grid="x")
    figure.colorbar(strip, ax=axes, label="snippet probability", fraction=0.04, pad=0.02)
    handles = [
        Patch(facecolor=BLUE, label="audio, predicted"),
        Patch(facecolor=ORANGE, label="visual, predicted"),
        Patch(facecolor="none", edgecolor="black", linewidth=1.8, label="truth"),
    ]
    axes.legend(handles=handles, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return _save(figure, path, title)


def _runs(mask: Mask) -> list[tuple[int, int]]:
    """(onset, length) of each run of True in `[T]`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return [(int(start), int(end - start)) for start, end in edges.reshape(-1, 2)]


def _percent(part: int, total: int) -> str:
    """A share as a label; what is there but rounds to nothing must not read as nothing."""
    share = 100 * part / max(total, 1)
    return "" if part == 0 else "<1 %" if share < 1 else f"{share:.0f} %"


def _plain_name(label: str) -> str:
    return label.replace("_", " ")


def _plain(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: str | os.PathLike[str], title: str) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.suptitle(title, fontweight="bold", fontsize=11, wrap=True)
    figure.savefig(path, format="png", dpi=140)
    return path
