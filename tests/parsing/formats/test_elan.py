"""ELAN's files, read by pympi-ling."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from pympi.Elan import Eaf

from avvp_dist.parsing.formats.elan import render
from avvp_dist.parsing.formats.names import distinct_lines
from avvp_dist.parsing.timeline import Timeline
from tests.parsing.timelines import SPANS, timeline_of, timelines


def read(timeline: Timeline, folder: Path) -> Eaf:
    path = folder / "clip.eaf"
    path.write_bytes(render(timeline)[".eaf"])
    return Eaf(path)


@given(timelines())
@settings(max_examples=30, deadline=None)
def test_events_survive(timeline: Timeline) -> None:
    names = dict(zip(timeline.classes, distinct_lines(timeline.classes), strict=True))
    with TemporaryDirectory() as folder:
        eaf = read(timeline, Path(folder))
    found = [
        (tier, onset, offset, value)
        for tier in eaf.get_tier_names()
        for onset, offset, value in eaf.get_annotation_data_for_tier(tier)
    ]
    expected = [
        (f"{event.modality}: {name}", 1000 * event.onset, 1000 * event.offset, name)
        for event in timeline.events
        for name in [names[event.label]]
    ]
    assert sorted(found) == sorted(expected)


def test_a_tier_is_a_modality_and_class(tmp_path: Path) -> None:
    eaf = read(timeline_of(SPANS), tmp_path)
    assert sorted(eaf.get_tier_names()) == [
        "audio: Dog",
        "audio: Frying_(food)",
        "audio: Speech",
        "visual: Dog",
        "visual: Speech",
    ]
    assert eaf.get_full_time_interval() == (0, 10_000)
    times = list(eaf.timeslots.values())
    assert times == sorted(times)
