"""Names on one line, and as names of files."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from avvp_dist.parsing.formats.names import distinct_lines, file_stem, single_line
from tests.parsing.timelines import names

ANY = names | st.text(st.characters(exclude_categories=()), max_size=9)
"""Lone surrogates too, which come of JSON."""


@given(ANY)
def test_a_name_is_one_line_of_text(name: str) -> None:
    line = single_line(name)
    assert line and line == line.strip() == single_line(line)
    assert len(line.splitlines()) == 1 and "\t" not in line and "\0" not in line
    line.encode()


@given(st.lists(ANY, unique=True))
def test_different_names_stay_different(many: list[str]) -> None:
    assert len(set(distinct_lines(many))) == len(many)
    assert distinct_lines(["a\t", "a\n", "b"]) == ("a", "a (2)", "b")


@given(st.lists(names.filter(bool), unique=True))
def test_every_clip_has_files_of_its_own(ids: list[str]) -> None:
    stems = [file_stem(name) for name in ids]
    assert len(set(stems)) == len(ids)
    for stem in stems:
        assert "/" not in stem and not stem.startswith(".") and len(stem) < 200


def test_usual_ids_are_names_of_files_and_taken_names_are_not() -> None:
    assert file_stem("4YdbENYcIyE_23_33") == "4YdbENYcIyE_23_33"
    assert file_stem("index") == "=69ndex" and file_stem("manifest") == "=6Danifest"
