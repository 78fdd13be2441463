"""Timelines for tests: of given events, and any with hostile names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from hypothesis import strategies as st
from matplotlib.image import imsave

from avvp_dist.evaluation.events import MODALITIES
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.parsing.timeline import ParserModel, Timeline
from avvp_dist.parsing.windows import Decision, make_timeline, window_starts

HOSTILE = (
    "<script>alert('x')</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><b>&amp;&lt;",
    "]]> --> <v Eve> \\n",
    "$\\frac{1}{0}$ $x_",
    "a\tb\nc\r\nd\0e\x85f\u2028g\x1b[31m",
    "\u202eleft to right, the other way",
    " NOTE ",
    "00:00.000 --> 00:01.000",
    "日本語 🎉 شخص",
    "x" * 300,
    "../../etc/passwd",
    "",
)

Span = tuple[str, str, int, int]
"""Modality, class, onset and offset in seconds."""


def timeline_of(
    spans: Sequence[Span],
    *,
    clip_id: str = "4YdbENYcIyE_23_33",
    seconds: int = 10,
    snippets: int = 10,
    classes: Sequence[str] = ("Speech", "Dog", "Frying_(food)", "Cat"),
    missing: Mapping[str, str] | None = None,
) -> Timeline:
    """A timeline with events of probability 0.875 at `spans`, and 0.25 elsewhere."""
    frame = np.full((max(seconds, snippets), 2, len(classes)), 0.25, np.float32)
    for modality, label, onset, offset in spans:
        frame[onset:offset, MODALITIES.index(modality), classes.index(label)] = 0.875
    windows = np.stack([frame[s : s + snippets] for s in window_starts(seconds, snippets)])
    ids = (clip_id,) * len(windows)
    predictions = Predictions(ids, windows, windows.max((1, 2)), windows.max(1))
    model = ParserModel("avvp-parser/3", "ab" * 32, "YAMNet", snippets)
    return make_timeline(
        predictions, seconds, classes, model, Decision("video", 0.5), missing or {}
    )


SPANS: tuple[Span, ...] = (
    ("audio", "Speech", 0, 4),
    ("visual", "Dog", 0, 10),
    ("visual", "Speech", 1, 3),
    ("audio", "Dog", 2, 4),
    ("audio", "Speech", 6, 9),
    ("audio", "Frying_(food)", 9, 10),
)


def image(colour: tuple[int, int, int], kind: str) -> bytes:
    """A small picture of one colour, as a PNG or JPEG file."""
    file = BytesIO()
    imsave(file, np.full((9, 16, 3), colour, np.uint8), format=kind)
    return file.getvalue()


names = st.sampled_from(HOSTILE) | st.text(max_size=20)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Any timeline of few seconds and classes, hostile names among them."""
    classes = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    seconds = draw(st.integers(1, 12))
    cells = [(m, c, s) for m in MODALITIES for c in classes for s in range(seconds)]
    chosen = draw(st.lists(st.sampled_from(cells), unique=True))
    missing = draw(st.sampled_from([{}, {"audio": "no <sound>"}, {"visual": "no picture"}]))
    return timeline_of(
        [(modality, label, second, second + 1) for modality, label, second in chosen],
        clip_id=draw(names.filter(bool)),
        seconds=seconds,
        snippets=draw(st.integers(1, 10)),
        classes=classes,
        missing=missing,
    )
