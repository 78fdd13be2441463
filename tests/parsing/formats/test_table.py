"""The table of formats."""

from __future__ import annotations

from avvp_dist.config.parsing import TIMELINE_FORMATS
from avvp_dist.parsing.formats.table import FORMATS
from tests.parsing.timelines import SPANS, timeline_of


def test_the_config_names_every_format() -> None:
    assert tuple(FORMATS) == TIMELINE_FORMATS


def test_every_file_has_its_name_and_the_same_timeline_makes_the_same_bytes() -> None:
    once, again = (
        [file for render in FORMATS.values() for file in render(timeline_of(SPANS), None).items()]
        for _ in range(2)
    )
    assert once == again
    suffixes = [suffix for suffix, _ in once]
    assert len(suffixes) == len(set(suffixes)) == 10
    assert all(suffix.startswith(".") for suffix in suffixes)
