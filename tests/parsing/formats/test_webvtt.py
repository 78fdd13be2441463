"""WebVTT, read by webvtt-py."""

from __future__ import annotations

from html import unescape

import webvtt
from hypothesis import given, settings

from avvp_dist.evaluation.events import MODALITIES
from avvp_dist.parsing.formats.names import single_line
from avvp_dist.parsing.formats.webvtt import render
from avvp_dist.parsing.timeline import Timeline
from tests.parsing.timelines import timeline_of, timelines


@given(timelines())
@settings(max_examples=30, deadline=None)
def test_events_survive(timeline: Timeline) -> None:
    for modality in MODALITIES:
        cues = webvtt.from_string(render(timeline)[f".{modality}.vtt"].decode())
        found = [(cue.start_in_seconds, cue.end_in_seconds, unescape(cue.text)) for cue in cues]
        assert found == [
            (event.onset, event.offset, single_line(event.label))
            for event in timeline.events
            if event.modality == modality
        ]


def test_hours_are_written() -> None:
    timeline = timeline_of([("visual", "Dog", 3661, 3700)], seconds=3800)
    text = render(timeline)[".visual.vtt"].decode()
    assert text == "WEBVTT\n\n01:01:01.000 --> 01:01:40.000\nDog\n"
