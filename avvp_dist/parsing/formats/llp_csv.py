"""LLP's csv: tab separated rows of filename, onset, offset and class; a file per modality.

`annotations/llp.py` reads the format. It has no quotes, so names are put on one line.
"""

from __future__ import annotations

from avvp_dist.evaluation.events import MODALITIES
from avvp_dist.parsing.formats.names import single_line
from avvp_dist.parsing.timeline import Timeline

HEADER = "filename\tonset\toffset\tevent_labels"


def render(timeline: Timeline) -> dict[str, bytes]:
    """The files of a timeline by suffix."""
    return {f".{modality}.csv": _file(timeline, modality) for modality in MODALITIES}


def _file(timeline: Timeline, modality: str) -> bytes:
    clip = single_line(timeline.id)
    rows = (
        f"{clip}\t{event.onset}\t{event.offset}\t{single_line(event.label)}"
        for event in timeline.events
        if event.modality == modality
    )
    return "".join(f"{row}\n" for row in (HEADER, *rows)).encode()
