"""Timelines as JSON, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings

from avvp_dist.errors import DataError
from avvp_dist.parsing.timeline import Timeline, tick_step
from tests.parsing.timelines import SPANS, timeline_of, timelines


@given(timelines())
@settings(max_examples=30, deadline=None)
def test_json_keeps_everything(timeline: Timeline) -> None:
    assert Timeline.from_json(timeline.to_json(), "a.json") == timeline


def test_json_says_what_others_need() -> None:
    entries = json.loads(timeline_of(SPANS).to_json())
    assert entries["schema"] == "avvp-timeline-1"
    assert entries["model"]["version"] == "avvp-parser/3"
    assert entries["rule"] == "video" and entries["thresholds"] == [[0.5] * 4] * 2
    first = {"modality": "audio", "label": "Speech", "onset": 0, "offset": 4, "confidence": 0.875}
    assert entries["events"][0] == first
    assert entries["frame_prob"][4] == [[0.25] * 4, [0.25, 0.875, 0.25, 0.25]]
    assert entries["video_prob"][0] == [0.875, 0.875, 0.875, 0.25]
    assert entries["modality_prob"] is None


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"schema": "avvp-timeline-9"}, "has the schema avvp-timeline-9, this version reads"),
        ({"seconds": "ten"}, "seconds is 'ten', expected int"),
        ({"surprise": 1}, "surprise is unknown"),
        ({"rule": "majority"}, "rule 'majority' is not one of video, modality"),
        ({"seconds": 9}, r"frame_prob is not of the shape \[9, 2, 4\]"),
        ({"video_prob": None}, r"video_prob is not of the shape \[10, 4\]"),
        ({"thresholds": [[0.5] * 4, [float("nan")] * 4]}, "thresholds is not finite"),
        ({"video_prob": [[3.0] * 4] * 10}, "video_prob is not within 0 and 2"),
        ({"classes": ["Dog", "Dog", "a", "b"]}, "classes: a name is there twice"),
        ({"missing": {"smell": "no nose"}}, "missing: .'smell'. are not all of audio, visual"),
        ({"missing": {"audio": "mute"}}, r"events\[0\] is of a modality that is missing"),
    ],
)
def test_a_wrong_entry_is_named(changes: dict[str, Any], fault: str) -> None:
    entries = {**json.loads(timeline_of(SPANS).to_json()), **changes}
    with pytest.raises(DataError, match=rf"^a\.json .*{fault}"):
        Timeline.from_json(json.dumps(entries), "a.json")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"offset": 11}, "is not within the clip's 10 s"),
        ({"onset": 4}, "is not within the clip's 10 s"),
        ({"label": "Goat"}, "is of no known modality and class"),
        ({"confidence": "high"}, "confidence is 'high'"),
    ],
)
def test_a_wrong_event_is_named(changes: dict[str, Any], fault: str) -> None:
    entries = json.loads(timeline_of(SPANS).to_json())
    entries["events"][0].update(changes)
    with pytest.raises(DataError, match=rf"events\[0\].*{fault}"):
        Timeline.from_json(json.dumps(entries), "a.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, "\ufeff{}"])
def test_another_file_is_no_timeline(text: str) -> None:
    with pytest.raises(DataError, match=r"^a\.json is no"):
        Timeline.from_json(text, "a.json")


def test_classes_are_shown_by_their_first_onset_or_else_the_likeliest() -> None:
    timeline = timeline_of(
        [("audio", "Cat", 3, 4), ("visual", "Dog", 1, 2), ("audio", "Dog", 7, 9)]
    )
    assert [timeline.classes[n] for n in timeline.shown_classes()] == ["Dog", "Cat"]
    quiet = timeline_of([])
    assert quiet.active_classes() == () and len(quiet.shown_classes()) == 3


def test_notes_say_what_a_reader_has_to_know() -> None:
    assert list(timeline_of(SPANS).notes()) == []
    mute = timeline_of([("visual", "Dog", 0, 2)], seconds=7, missing={"audio": "the file is mute"})
    missing, padding = mute.notes()
    assert missing == "No audio events: the file is mute."
    assert padding.startswith("The clip has 7 s and the parser reads 10 s")
    windows, nothing = timeline_of([], seconds=14).notes()
    assert "windows of 10 s" in windows and nothing.startswith("No event reaches")


def test_an_axis_has_few_labels() -> None:
    assert [tick_step(seconds) for seconds in (1, 10, 12, 13, 61, 600)] == [1, 1, 1, 2, 5, 60]
    assert all(seconds / tick_step(seconds) <= 13 for seconds in range(1, 100_000, 97))
