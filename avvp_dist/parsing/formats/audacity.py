"""Audacity's labels: lines of onset, offset and class, separated by tabs; a track per modality.

Audacity reads them with File, Import, Labels.
"""

from __future__ import annotations

from avvp_dist.evaluation.events import MODALITIES
from avvp_dist.parsing.formats.names import single_line
from avvp_dist.parsing.timeline import Timeline


def render(timeline: Timeline) -> dict[str, bytes]:
    """The files of a timeline by suffix."""
    return {f".{modality}.txt": _file(timeline, modality) for modality in MODALITIES}


def _file(timeline: Timeline, modality: str) -> bytes:
    return "".join(
        f"{event.onset:.6f}\t{event.offset:.6f}\t{single_line(event.label)}\n"
        for event in timeline.events
        if event.modality == modality
    ).encode()
