"""Windows over clips of any length, and the events that come of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avvp_dist.evaluation.events import MODALITIES
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.parsing.timeline import ParserModel
from avvp_dist.parsing.windows import Decision, average_windows, make_timeline, window_starts
from tests.parsing.timelines import timeline_of

MODEL = ParserModel("folder", "00", "YAMNet", 10)


@given(st.integers(1, 200), st.integers(1, 20))
def test_windows_cover_the_clip_and_the_last_ends_with_it(seconds: int, snippets: int) -> None:
    starts = window_starts(seconds, snippets)
    assert starts[0] == 0 and starts[-1] == max(0, seconds - snippets)
    assert {s + t for s in starts for t in range(snippets)} >= set(range(seconds))
    assert len(starts) == max(1, -(-seconds // snippets))


def test_overlapping_seconds_are_averaged() -> None:
    values = np.array([[0, 0, 0, 0.25], [1, 0.5, 0.5, 1]], np.float32)[..., None]
    assert average_windows(values, 6)[:, 0].tolist() == [0, 0, 0.5, 0.375, 0.5, 1]
    # A short clip keeps its own seconds of the padded window.
    assert average_windows(values[:1], 3)[:, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("rule", ["video", "modality"])
@pytest.mark.parametrize("threshold", [0.5, np.random.default_rng(1).uniform(0.3, 0.9, (2, 5))])
def test_events_of_one_window_are_those_of_the_rule(
    rule: str, threshold: float | np.ndarray
) -> None:
    rng = np.random.default_rng(0)
    frame = rng.random((1, 10, 2, 5), np.float32)
    one = Predictions(("a",), frame, rng.random((1, 5), np.float32), frame.mean(1))
    timeline = make_timeline(one, 10, "abcde", MODEL, Decision(rule, threshold), {})
    mask = np.zeros((1, 10, 2, 5), bool)
    for event in timeline.events:
        column = (MODALITIES.index(event.modality), "abcde".index(event.label))
        around, own = (
            slice(max(0, event.onset - 1), event.offset + 1),
            slice(event.onset, event.offset),
        )
        assert not mask[(0, around, *column)].any()  # it is whole, and no other touches it
        mask[(0, own, *column)] = True
        mean = frame[(0, own, *column)].mean()
        assert event.confidence == pytest.approx(mean, abs=1e-6)
    assert np.array_equal(mask, one.decided(rule, threshold))
    np.testing.assert_array_equal(timeline.probabilities, frame[0])


def test_a_short_clip_has_no_event_in_its_padding() -> None:
    timeline = timeline_of([("audio", "Dog", 4, 10)], seconds=6)
    assert [(event.onset, event.offset) for event in timeline.events] == [(4, 6)]
    assert timeline.padding == 4


def test_a_missing_modality_has_no_events() -> None:
    spans = [("audio", "Dog", 1, 2), ("visual", "Dog", 1, 2)]
    timeline = timeline_of(spans, missing={"audio": "mute"})
    assert [event.modality for event in timeline.events] == ["visual"]
