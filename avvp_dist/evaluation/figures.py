"""Figures: grounding similarity and components, curves, per-class F and counts, timelines.

Every function writes one PNG at 140 dpi, making its folder, and returns its path. `title` should
say which data the figure shows. The colours are Okabe and Ito's, told apart by the colour-blind.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
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
    shares: Mapping[str, float] | None = None,
) -> Path:
    """How large components are and how many a clip has.

    `sizes` `[T]`: number of components of 1..T snippets; `counts` `[T]`: number of clips with
    1..T components. Bars carry their share of the panel's total. `shares` are drawn beside them.
    """
    width = 14.4 if shares else 9.6
    figure = Figure(figsize=(width, 3.8))
    # Places in inches: a layout that fits itself would draw everything twice.
    places = ((1.0, 3.6), (5.7, 3.6), (11.2, 3.0))[: 3 if shares else 2]
    left, right, *third = (
        figure.add_axes((start / width, 0.15, size / width, 0.66)) for start, size in places
    )
    for axes, values, colour, xlabel, things in (
        (left, sizes, BLUE, "snippets in a component", "components"),
        (right, counts, ORANGE, "components in a clip", "clips"),
    ):
        total = int(values.sum())
        bars = axes.bar(np.arange(1, len(values) + 1), values, color=colour, width=0.8)
        texts = [_percent(value, total) for value in values.tolist()]
        axes.bar_label(bars, texts, padding=2, fontsize=8)
        axes.margins(y=0.12)
        axes.set(title=f"{total:,} {things}", xlabel=xlabel, ylabel=f"number of {things}")
        axes.set_xticks(np.arange(1, len(values) + 1))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        _plain(axes, grid="y")
    if shares:
        _share_bars(third[0], shares)
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
    """F of each class in percent, `scores[model]` `[C]`: one panel of `comparison_figure`."""
    return comparison_figure(path, classes, {"": scores}, title)


def comparison_figure(
    path: str | os.PathLike[str],
    classes: Sequence[str],
    panels: Mapping[str, Mapping[str, Floats]],
    title: str,
) -> Path:
    """F of each class in percent, `panels[panel][model]` `[C]`, a panel a modality: Figure 4.

    A row is a class, the best mean over all panels and models on top. A nan (the class occurs
    neither in truth nor in the prediction) is a cross left of 0. Raises `KeyError` for a model
    that only some panels have.
    """
    models = list(dict.fromkeys(model for scores in panels.values() for model in scores))
    values = np.array([[scores[model] for model in models] for scores in panels.values()], float)
    known = ~np.isnan(values)
    mean = np.where(known, values, 0).sum(axis=(0, 1)) / np.maximum(known.sum(axis=(0, 1)), 1)
    order = np.argsort(np.where(known.any(axis=(0, 1)), mean, -1), kind="stable")
    # Room for the class names once, then the same for every panel.
    size = (2.2 + (5.0 if len(panels) == 1 else 4.0) * len(panels), 1.6 + 0.27 * len(classes))
    figure = Figure(figsize=size, layout="constrained")
    columns = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, panel, scores in zip(columns, panels, values[:, :, order], strict=True):
        _score_rows(axes, models, scores)
        axes.set(title=panel, xlabel="F-score (%)", xlim=(-4, 101.5))
        _plain(axes)
    columns[0].set_yticks(np.arange(len(classes)), [_plain_name(classes[row]) for row in order])
    columns[0].set_ylim(-0.6, len(classes) - 0.4)
    handles = columns[0].get_legend_handles_labels()[0]
    if not known.all():
        label = "neither true nor predicted"
        handles.append(columns[0].scatter([], [], color="grey", marker="x", s=16, label=label))
    ncols = min(len(handles), 2 * len(panels))
    figure.legend(handles=handles, frameon=False, ncols=ncols, loc="outside lower center")
    return _save(figure, path, title)


def event_counts(events: Mask) -> dict[str, NDArray[np.int64]]:
    """Number of clips with an event of each class, `[C]`, from bool `[N, T, 2, C]`.

    Keys: 'audio', 'visual', and 'audio-visual' for a class heard and seen in the same second.
    Such a clip counts under all three.
    """
    heard, seen = events[:, :, 0], events[:, :, 1]
    kinds = {"audio": heard, "visual": seen, "audio-visual": heard & seen}
    return {kind: mask.any(axis=1).sum(axis=0) for kind, mask in kinds.items()}


def distribution_figure(
    path: str | os.PathLike[str],
    classes: Sequence[str],
    counts: Mapping[str, NDArray[np.integer]],
    title: str,
) -> Path:
    """Number of clips with an event of each class, `counts[kind]` `[C]`, see `event_counts`.

    The paper's Figure 1: a line a kind, the class most frequent over all kinds on the left. The
    scale is logarithmic, down to 0 where a count is.
    """
    order = np.argsort(-np.sum(list(counts.values()), axis=0), kind="stable")
    places = np.arange(len(classes))
    figure = Figure(figsize=(1.2 + 0.36 * len(classes), 4.8), layout="constrained")
    axes = figure.subplots()
    for number, (lane, kind) in enumerate(zip(_lanes(len(counts)), counts, strict=True)):
        axes.plot(
            places - lane,
            counts[kind][order],
            color=PALETTE[number % len(PALETTE)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=5.5,
            linewidth=0.8,
            label=kind,
        )
    values = np.concatenate(list(counts.values()))
    axes.set_yscale("symlog", linthresh=1, linscale=0.3)
    ticks = [0, *(step * 10**power for power in range(7) for step in (1, 2, 5))]
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylim(0.8 * values.min() - 0.15, 1.25 * max(values.max(), 1))
    axes.set_xticks(places, [_plain_name(classes[row]) for row in order], rotation=45, ha="right")
    axes.tick_params(axis="x", length=0)
    axes.set(ylabel="clips with such an event", xlim=(-0.6, len(classes) - 0.4))
    _plain(axes)
    axes.legend(frameon=False, title="events (not disjoint sets)", alignment="left")
    return _save(figure, path, title)


def seeds_figure(
    path: str | os.PathLike[str],
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    controls: Collection[str],
    xlabel: str,
    title: str,
) -> Path:
    """`panels[panel][row]` are the values of a row's seeds, small dots; a large one is their mean.

    Rows stand from the top down, those among `controls` in another colour. Every panel has the
    same rows; one without values is empty.
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
        _plain(axes)
    columns[0].set_yticks(np.arange(len(names)), names)
    columns[0].set_ylim(len(names) - 0.4, -0.6)
    handles = [
        columns[0].scatter([], [], color=colour, s=52, label=label)
        for colour, label in ((BLUE, "grounding"), (ORANGE, "control"))
    ]
    figure.legend(handles=handles, frameon=False, ncols=2, loc="outside lower center")
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


def _share_bars(axes: Axes, shares: Mapping[str, float]) -> None:
    """A bar for each share, the first on top."""
    names, values = list(shares)[::-1], list(shares.values())[::-1]
    bars = axes.barh(np.arange(len(names)), values, color=PALETTE[2], height=0.7)
    texts = [f"{100 * v:.1f} %" if v == 0 or v >= 0.001 else "<0.1 %" for v in values]
    axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.set_yticks(np.arange(len(names)), names, fontsize=8)
    axes.set(title="shares", xlim=(0, 1.15))
    axes.set_xticks([0, 0.5, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    _plain(axes, grid="x")


def _lanes(number: int) -> Floats:
    """Shifts that let `number` markers of one class stand apart, so that equal values show."""
    return np.linspace(0.18, -0.18, number) if number > 1 else np.zeros(1)


def _score_rows(axes: Axes, models: Sequence[str], scores: Floats) -> None:
    """Dots for `scores` `[models, C]`, a row a class from the bottom to the top.

    A bar joins the lowest and the highest of a row in the colour of the best model.
    """
    rows = np.arange(scores.shape[1])
    colours = [PALETTE[number % len(PALETTE)] for number in range(len(models))]
    best = np.where(np.isnan(scores), -1, scores).argmax(axis=0)
    # fmin and fmax pass over nan.
    low, high = np.fmin.reduce(scores), np.fmax.reduce(scores)
    axes.hlines(rows, low, high, color=[colours[row] for row in best], linewidth=3, alpha=0.35)
    for number, (lane, model) in enumerate(zip(_lanes(len(models)), models, strict=True)):
        score, y = scores[number], rows + lane
        marker = MARKERS[number % len(MARKERS)]
        axes.scatter(score, y, color=colours[number], marker=marker, s=26, label=model, zorder=3)
        missing = np.isnan(score)
        crosses = np.full(missing.sum(), -2.5)
        axes.scatter(crosses, y[missing], color=colours[number], marker="x", s=16)


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
