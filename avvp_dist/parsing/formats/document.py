"""HTML documents in one file: nothing is fetched, and nothing runs that is not ours.

A page may hold names that anyone chose. Its policy allows only the style and the script that were
written here, by their hashes, and pictures and media that are in the file.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from functools import cache
from html import escape
from importlib.resources import files
from string import Template

from avvp_dist.parsing.formats.names import single_line


def document(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A whole HTML document.

    Args:
        title: plain text.
        body: HTML whose texts are escaped.
        style: CSS after that of all pages.
        script: JavaScript, run after the body.
    """
    style = asset("style.css") + style
    sources = {
        "default-src": "'none'",
        "style-src": _hash(style),
        "script-src": _hash(script) if script else "'none'",
        "img-src": "data:",
        "media-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return template("document.html").substitute(
        policy="; ".join(f"{name} {source}" for name, source in sources.items()),
        title=text(title),
        style=style,
        body=body,
        script=f"<script>{script}</script>" if script else "",
    )


def text(name: str) -> str:
    """A name as HTML text or as the value of an attribute in double quotes."""
    return escape(single_line(name))


@cache
def asset(name: str) -> str:
    """Text of a file in `assets/`."""
    return (files(__package__) / "assets" / name).read_text("utf-8")


def template(name: str) -> Template:
    """A file in `assets/` with `$name` for what is put into it."""
    return Template(asset(name))


def _hash(source: str) -> str:
    """The source of a policy that allows one inline text."""
    return f"'sha256-{b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
