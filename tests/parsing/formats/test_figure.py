"""The picture of a timeline."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from matplotlib.image import imread

from avvp_dist.parsing.formats.figure import render
from avvp_dist.parsing.formats.media import Media
from avvp_dist.parsing.timeline import Timeline
from tests.parsing.timelines import HOSTILE, SPANS, image, timeline_of


def pixels(timeline: Timeline, media: Media | None = None) -> np.ndarray:
    return np.round(imread(BytesIO(render(timeline, media)[".png"])) * 255)[..., :3]


def count(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int = 6) -> int:
    return int((np.abs(picture - colour) <= tolerance).all(-1).sum())


BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


def test_events_are_outlined_in_the_colour_of_their_modality() -> None:
    heard = pixels(timeline_of([("audio", "Dog", 2, 4)]))
    seen = pixels(timeline_of([("visual", "Dog", 2, 4)]))
    assert count(heard, BLUE) > 300 and count(heard, ORANGE) == 0
    assert count(seen, ORANGE) > 300 and count(seen, BLUE) == 0


def test_pictures_and_sound_are_above() -> None:
    grey, green = (128, 128, 128), (10, 180, 40)
    media = Media(thumbnails=(image(grey, "jpeg"),) * 5, log_mel=image(green, "png"))
    picture = pixels(timeline_of(SPANS), media)
    masks = ((np.abs(picture - colour) <= 3).all(-1) for colour in (grey, green, BLUE))
    above, below, events = (np.flatnonzero(mask.sum(1) > 100) for mask in masks)
    assert above.max() < below.min() and below.max() < events.max()
    assert len(above) > 40 and len(below) > 40


@pytest.mark.filterwarnings("error")
def test_any_name_can_be_drawn() -> None:
    spans = [("audio", label, 0, 1) for label in HOSTILE]
    timeline = timeline_of(spans, clip_id=HOSTILE[4], classes=HOSTILE, missing={"visual": "$x_"})
    assert pixels(timeline).shape[0] > 500
