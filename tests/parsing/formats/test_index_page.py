"""The list of parsed clips."""

from __future__ import annotations

import re
from html import unescape
from urllib.parse import unquote

from avvp_dist.parsing.formats.index_page import ParsedClip, render

DOG = ParsedClip(
    10, ("Dog", "Frying_(food)"), (), "No visual events: <mute>.", "00", ("a b=2F.html", "a.json")
)


def test_a_clip_has_its_classes_its_note_and_a_link() -> None:
    page = render({"a <b>/": DOG, "quiet": ParsedClip(7, (), (), "", "00", ("q.json",))}).decode()
    assert "2 clips, 1 with events" in page
    assert [unquote(link) for link in re.findall(r'<a href="([^"]+)"', page)] == ["a b=2F.html"]
    assert [unescape(x) for x in re.findall(r"<bdi>(.*?)</bdi>", page)] == ["a <b>/", "quiet"]
    assert re.findall(r'class="chip audio"[^>]*>(.*?)<', page) == ["Dog", "Frying (food)"]
    assert "&lt;mute&gt;" in page and "<mute>" not in page
