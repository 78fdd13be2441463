"""WebVTT: subtitles that name the events while they last; a file per modality."""

from __future__ import annotations

from html import escape

from avvp_dist.evaluation.events import MODALITIES, Event
from avvp_dist.parsing.formats.names import single_line
from avvp_dist.parsing.timeline import Timeline


def render(timeline: Timeline) -> dict[str, bytes]:
    """The files of a timeline by suffix."""
    return {f".{modality}.vtt": _file(timeline, modality) for modality in MODALITIES}


def _file(timeline: Timeline, modality: str) -> bytes:
    cues = (_cue(event) for event in timeline.events if event.modality == modality)
    return "\n".join(("WEBVTT\n", *cues)).encode()


def _cue(event: Event) -> str:
    text = escape(single_line(event.label), quote=False)  # which leaves no --> either
    return f"{_clock(event.onset)} --> {_clock(event.offset)}\n{text}\n"


def _clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}.000"
