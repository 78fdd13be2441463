"""HTML documents: their policy and their texts."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode

from avvp_dist.parsing.formats.document import asset, document, text


def test_the_policy_allows_the_style_and_the_script_and_nothing_else() -> None:
    page = document("a & b", "<p>hello", style="p { color: red }", script="let x = '<b>';")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == rules["media-src"] == "data:"
    for kind in ("style", "script"):
        (inline,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert "<title>a &amp; b</title>" in page


def test_a_document_without_script_allows_none() -> None:
    page = document("a", "<p>hello")
    assert "script-src 'none'" in page and "<script" not in page


def test_texts_cannot_leave_their_place() -> None:
    assert text("\"'<>&\n") == "&quot;&#x27;&lt;&gt;&amp;"


def test_the_script_is_short() -> None:
    assert len(asset("page.js").splitlines()) < 200
