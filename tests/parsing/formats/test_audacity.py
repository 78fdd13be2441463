"""Audacity's labels."""

from __future__ import annotations

from hypothesis import given, settings

from avvp_dist.evaluation.events import MODALITIES
from avvp_dist.parsing.formats.audacity import render
from avvp_dist.parsing.formats.names import single_line
from avvp_dist.parsing.timeline import Timeline
from tests.parsing.timelines import timeline_of, timelines


def read(content: bytes) -> list[tuple[float, float, str]]:
    """Onset, offset and text of each label, as Audacity's manual describes the file."""
    rows = (line.split("\t") for line in content.decode().split("\n")[:-1])
    return [(float(onset), float(offset), text) for onset, offset, text in rows]


@given(timelines())
@settings(max_examples=30, deadline=None)
def test_events_survive(timeline: Timeline) -> None:
    for modality in MODALITIES:
        assert read(render(timeline)[f".{modality}.txt"]) == [
            (event.onset, event.offset, single_line(event.label))
            for event in timeline.events
            if event.modality == modality
        ]


def test_a_line_is_what_audacity_writes() -> None:
    files = render(timeline_of([("audio", "Frying_(food)", 2, 10)]))
    assert files[".audio.txt"] == b"2.000000\t10.000000\tFrying_(food)\n"
    assert files[".visual.txt"] == b""
