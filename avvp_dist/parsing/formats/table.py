"""The table of formats: how each one renders a timeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from avvp_dist.parsing.formats import audacity, elan, llp_csv, page, webvtt
from avvp_dist.parsing.formats.media import Media
from avvp_dist.parsing.timeline import Timeline

Format = Callable[[Timeline, Media | None], dict[str, bytes]]
"""A function that renders a timeline: its files by suffix, such as `.audio.csv`."""


def _png(timeline: Timeline, media: Media | None) -> dict[str, bytes]:
    from avvp_dist.parsing.formats import figure  # Matplotlib is for this format alone

    return figure.render(timeline, media)


FORMATS: Mapping[str, Format] = {
    "json": lambda timeline, _: {".json": timeline.to_json().encode()},
    "csv": lambda timeline, _: llp_csv.render(timeline),
    "audacity": lambda timeline, _: audacity.render(timeline),
    "webvtt": lambda timeline, _: webvtt.render(timeline),
    "elan": lambda timeline, _: elan.render(timeline),
    "png": _png,
    "html": page.render,
}
"""Every format by its name in `formats=[...]`."""
