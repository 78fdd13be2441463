"""Media in a page."""

from __future__ import annotations

from base64 import b64decode

from avvp_dist.parsing.formats.media import data_url, image_url


def test_a_file_is_in_its_url() -> None:
    head, _, content = data_url(b"\0\xff?", "video/mp4").partition(",")
    assert head == "data:video/mp4;base64" and b64decode(content) == b"\0\xff?"


def test_images_say_what_they_are() -> None:
    assert image_url(b"\x89PNG\r\n\x1a\n").startswith("data:image/png;")
    assert image_url(b"\xff\xd8\xff").startswith("data:image/jpeg;")
