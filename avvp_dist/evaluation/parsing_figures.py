"""Figures of parsing: scores and frequencies of the classes, and the timeline of a clip."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from avvp_dist.evaluation.figures import (
    BLUE,
    MARKERS,
    ORANGE,
    PALETTE,
    Floats,
    plain_axes,
    save_figure,
)
from avvp_dist.evaluation.scores import runs

Mask = NDArray[np.bool_]


def class_figure(
    path: str | os.PathLike[str],
    classes: Sequence[str],
    scores: Mapping[str, Floats],
    title: str,
) -> Path:
    """Draw F of each class in percent, `[C]` per model, as one panel of `comparison_figure`."""
    return comparison_figure(path, classes, {"": scores}, title)


def comparison_figure(
    path: str | os.PathLike[str],
    classes: Sequence[str],
    panels: Mapping[str, Mapping[str, Floats]],
    title: str,
) -> Path:
    """Draw F of each class of several models, one panel per modality (the paper's Figure 4).

    A row is a class; the one with the best mean over all panels and models is on top. A nan (the
    class occurs neither in the truth nor in the prediction) is a cross left of 0.

    Args:
        panels: F in percent, `[C]` per panel and model.

    Raises:
        KeyError: for a model that only some panels have.
    """
    models = list(dict.fromkeys(model for scores in panels.values() for model in scores))
    values = np.array([[scores[model] for model in models] for scores in panels.values()], float)
    known = ~np.isnan(values)
    mean = np.where(known, values, 0).sum(axis=(0, 1)) / np.maximum(known.sum(axis=(0, 1)), 1)
    order = np.argsort(np.where(known.any(axis=(0, 1)), mean, -1), kind="stable")
    # Width for the class names once, then the same width for every panel.
    size = (2.2 + (5.0 if len(panels) == 1 else 4.0) * len(panels), 1.6 + 0.27 * len(classes))
    figure = Figure(figsize=size, layout="constrained")
    columns = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, panel, scores in zip(columns, panels, values[:, :, order], strict=True):
        _score_rows(axes, models, scores)
        axes.set(title=panel, xlabel="F-score (%)", xlim=(-4, 101.5))
        plain_axes(axes)
    columns[0].set_yticks(np.arange(len(classes)), [_class_label(classes[row]) for row in order])
    columns[0].set_ylim(-0.6, len(classes) - 0.4)
    handles = columns[0].get_legend_handles_labels()[0]
    if not known.all():
        label = "neither true nor predicted"
        handles.append(columns[0].scatter([], [], color="grey", marker="x", s=16, label=label))
    ncols = min(len(handles), 2 * len(panels))
    figure.legend(handles=handles, frameon=False, ncols=ncols, loc="outside lower center")
    return save_figure(figure, path, title)


def event_counts(events: Mask) -> dict[str, NDArray[np.int64]]:
    """Count the clips with an event of each class, `[C]` per kind, from bool `[N, T, 2, C]`.

    Kinds are 'audio', 'visual', and 'audio-visual' for a class that is heard and seen in the same
    second. Such a clip counts for all three.
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
    """Draw the number of clips with an event of each class (the paper's Figure 1).

    Each kind is a line; the most frequent class over all kinds is on the left. The scale is
    logarithmic, and reaches down to 0 if a count is 0.

    Args:
        counts: `event_counts`, `[C]` per kind.
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
    axes.set_xticks(places, [_class_label(classes[row]) for row in order], rotation=45, ha="right")
    axes.tick_params(axis="x", length=0)
    axes.set(ylabel="clips with such an event", xlim=(-0.6, len(classes) - 0.4))
    plain_axes(axes)
    axes.legend(frameon=False, title="events (not disjoint sets)", alignment="left")
    return save_figure(figure, path, title)


def timeline_figure(
    path: str | os.PathLike[str],
    classes: Sequence[str],
    truth: Mask,
    frame_prob: Floats,
    predicted: Mask,
    title: str,
) -> Path:
    """Draw the events of one clip: truth, prediction and snippet probability, each `[T, 2, C]`.

    Each class in the truth or the prediction has a row, and so has the most probable one. A row is
    a lane for audio above one for vision, with true events outlined, predicted ones filled, and the
    probability as a strip below them.
    """
    probable = int(frame_prob.max(axis=(0, 1)).argmax())
    occurring = np.flatnonzero((truth | predicted).any(axis=(0, 1)))
    rows = sorted({probable, *occurring.tolist()})
    snippets = len(truth)
    figure = Figure(figsize=(8.4, 2.0 + 0.8 * len(rows)), layout="constrained")
    axes = figure.subplots()
    lane_centres = []
    for row, label in enumerate(rows):
        for stream, colour in enumerate((BLUE, ORANGE)):
            # Lanes are 0.34 high, and y grows downwards: bars take 0.24 of it, the strip the rest.
            top = row - 0.41 + 0.48 * stream
            lane_centres.append(top + 0.17)
            column = (slice(None), stream, label)
            strip = _draw_lane(
                axes, top, truth[column], frame_prob[column], predicted[column], colour
            )
    axes.set_yticks(np.arange(len(rows)), [_class_label(classes[row]) for row in rows])
    axes.set_yticks(
        lane_centres, ["audio", "visual"] * len(rows), minor=True, fontsize=8, color="0.35"
    )
    axes.tick_params(axis="y", which="major", pad=42, length=0)
    axes.tick_params(axis="y", which="minor", length=0)
    axes.set(xlabel="time (s)", xlim=(0, snippets), ylim=(len(rows) - 0.5, -0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.hlines(np.arange(1, len(rows)) - 0.5, 0, snippets, color="0.8", linewidth=0.8)
    plain_axes(axes, grid="x")
    figure.colorbar(strip, ax=axes, label="snippet probability", fraction=0.04, pad=0.02)
    handles = [
        Patch(facecolor=BLUE, label="audio, predicted"),
        Patch(facecolor=ORANGE, label="visual, predicted"),
        Patch(facecolor="none", edgecolor="black", linewidth=1.8, label="truth"),
    ]
    axes.legend(handles=handles, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return save_figure(figure, path, title)


def _score_rows(axes: Axes, models: Sequence[str], scores: Floats) -> None:
    """Draw `scores [models, C]` as dots, one row per class from the bottom to the top.

    A bar joins the lowest and the highest of a row in the colour of the best model.
    """
    rows = np.arange(scores.shape[1])
    colours = [PALETTE[number % len(PALETTE)] for number in range(len(models))]
    best = np.where(np.isnan(scores), -1, scores).argmax(axis=0)
    # fmin and fmax ignore nan.
    low, high = np.fmin.reduce(scores), np.fmax.reduce(scores)
    axes.hlines(rows, low, high, color=[colours[row] for row in best], linewidth=3, alpha=0.35)
    for number, (lane, model) in enumerate(zip(_lanes(len(models)), models, strict=True)):
        score, y = scores[number], rows + lane
        marker = MARKERS[number % len(MARKERS)]
        axes.scatter(score, y, color=colours[number], marker=marker, s=26, label=model, zorder=3)
        missing = np.isnan(score)
        crosses = np.full(missing.sum(), -2.5)
        axes.scatter(crosses, y[missing], color=colours[number], marker="x", s=16)


def _draw_lane(
    axes: Axes, top: float, truth: Mask, frame_prob: Floats, predicted: Mask, colour: str
) -> QuadMesh:
    """Draw the events of one class and modality, each `[T]`, and return the probability strip."""
    strip = axes.pcolormesh(
        np.arange(len(truth) + 1),
        [top + 0.26, top + 0.34],
        frame_prob[None],
        cmap="Greys",
        vmin=0,
        vmax=1,
    )
    axes.broken_barh(runs(predicted), (top, 0.24), color=colour)
    axes.broken_barh(
        runs(truth),
        (top - 0.02, 0.38),
        facecolor="none",
        edgecolor="black",
        linewidth=1.8,
        clip_on=False,
    )
    return strip


def _lanes(number: int) -> Floats:
    """Shifts that keep the `number` markers of a class apart, so that equal values are seen."""
    return np.linspace(0.18, -0.18, number) if number > 1 else np.zeros(1)


def _class_label(label: str) -> str:
    """Name of a class as it is printed."""
    return label.replace("_", " ")
