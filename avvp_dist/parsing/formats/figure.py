"""A timeline as a picture: a row per class, below the clip's thumbnails and spectrogram."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from avvp_dist.evaluation.events import MODALITIES
from avvp_dist.evaluation.figures import BLUE, ORANGE, png_of
from avvp_dist.parsing.formats.media import Media
from avvp_dist.parsing.formats.names import single_line
from avvp_dist.parsing.timeline import Timeline, tick_step

COLOURS = dict(zip(MODALITIES, (BLUE, ORANGE), strict=True))
_DARKEST = 0.6
"""Opacity of probability 1, which leaves the outlines of events visible."""
_MAXIMUM_ROWS = 40
_ASPECT = 10.0
"""Width of a strip of images by its height, about."""


def render(timeline: Timeline, media: Media | None) -> dict[str, bytes]:
    """The file of a timeline by suffix."""
    rows = timeline.shown_classes()[:_MAXIMUM_ROWS]
    strips = {
        "picture": media.thumbnails if media else (),
        "sound": (media.log_mel,) if media and media.log_mel else (),
    }
    pictures = {name: images for name, images in strips.items() if images}
    notes = list(timeline.notes())
    heights = [0.7] * len(pictures) + [0.7 + 0.62 * len(rows)]
    figure = Figure(figsize=(9, 1.1 + 1.05 * sum(heights) + 0.2 * len(notes)), layout="constrained")
    panels = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for axes, (name, images) in zip(panels, pictures.items(), strict=False):
        _draw_pictures(axes, name, images, timeline.seconds)
    _draw_rows(panels[-1], timeline, rows)
    if notes:
        text = single_line(" ".join(notes))
        figure.supxlabel(text, fontsize=8, color="0.35", parse_math=False, wrap=True)
    return {".png": png_of(figure, single_line(timeline.id))}


def _draw_pictures(axes: Axes, name: str, images: tuple[bytes, ...], seconds: int) -> None:
    """Draw images side by side over the whole clip."""
    width = seconds / len(images)
    for number, image in enumerate(images):
        kind = "png" if image.startswith(b"\x89PNG") else "jpg"
        extent = (number * width, (number + 1) * width, 0.0, 1.0)
        pixels = imread(BytesIO(image), kind)
        if len(images) > 1:
            pixels = _cropped(pixels, _ASPECT / len(images))
        axes.imshow(pixels, extent=extent, aspect="auto")
    axes.set(xlim=(0, seconds), ylim=(0, 1))
    axes.set_yticks([0.5], [name], fontsize=8, color="0.35")
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[:].set_visible(False)


def _cropped(pixels: NDArray[np.generic], aspect: float) -> NDArray[np.generic]:
    """The middle of an image `[height, width, ...]` that has the aspect width / height."""
    height, width = pixels.shape[:2]
    rows, columns = min(height, round(width / aspect)), min(width, round(height * aspect))
    top, left = (height - rows) // 2, (width - columns) // 2
    return pixels[top : top + max(rows, 1), left : left + max(columns, 1)]


def _draw_rows(axes: Axes, timeline: Timeline, rows: tuple[int, ...]) -> None:
    """Draw a row per class: a lane for audio above one for vision."""
    centres = []
    for row, column in enumerate(rows):
        for number, modality in enumerate(MODALITIES):
            top = row - 0.4 + 0.41 * number
            centres.append(top + 0.19)
            _draw_lane(axes, timeline, modality, column, top)
    labels = [_shortened(single_line(timeline.classes[column])) for column in rows]
    axes.set_yticks(np.arange(len(rows)), labels, parse_math=False)
    axes.set_yticks(centres, [*MODALITIES] * len(rows), minor=True, fontsize=7, color="0.35")
    axes.tick_params(axis="y", which="major", pad=40, length=0)
    axes.tick_params(axis="y", which="minor", length=0)
    axes.set(xlabel="time (s)", xlim=(0, timeline.seconds), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(0, timeline.seconds + 1, tick_step(timeline.seconds)))
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles = [
        *(
            Patch(facecolor=colour, alpha=_DARKEST, label=f"{modality}, probability 1")
            for modality, colour in COLOURS.items()
        ),
        Patch(facecolor="none", edgecolor="0.2", linewidth=1.6, label="event"),
    ]
    axes.legend(
        handles=handles,
        frameon=False,
        ncols=3,
        fontsize=8,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
    )


def _draw_lane(axes: Axes, timeline: Timeline, modality: str, column: int, top: float) -> None:
    """Draw the probabilities of one class and modality as shades, and outline its events."""
    colour, size = COLOURS[modality], 0.38
    if modality in timeline.missing:
        empty = Rectangle(
            (0, top),
            timeline.seconds,
            size,
            facecolor="none",
            hatch="////",
            edgecolor="0.85",
            linewidth=0,
        )
        axes.add_patch(empty)
        return
    probabilities = timeline.probabilities[:, MODALITIES.index(modality), column]
    shades = np.empty((1, timeline.seconds, 4))
    shades[..., :3], shades[..., 3] = to_rgb(colour), _DARKEST * probabilities
    axes.imshow(shades, extent=(0, timeline.seconds, top + size, top), aspect="auto")
    for event in timeline.events_of(modality, timeline.classes[column]):
        length = event.offset - event.onset
        axes.add_patch(
            Rectangle(
                (event.onset, top),
                length,
                size,
                facecolor="none",
                edgecolor=colour,
                linewidth=1.6,
                clip_on=False,
            )
        )


def _shortened(label: str) -> str:
    """A label that leaves room for the picture."""
    label = label.replace("_", " ")
    return label if len(label) <= 32 else f"{label[:31]}…"
