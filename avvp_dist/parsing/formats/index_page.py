"""The page that lists the parsed clips of a folder and links to theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from avvp_dist.parsing.formats.document import document, template, text


@dataclass(frozen=True)
class ParsedClip:
    """A parsed clip as a list of clips shows it."""

    seconds: int
    heard: tuple[str, ...]
    """Classes that have audio events, by their first onset."""
    seen: tuple[str, ...]
    """Classes that have visual events, by their first onset."""
    note: str
    """Why a modality is missing, and other remarks; empty if there are none."""
    result: str
    """`Timeline.result_digest`."""
    files: tuple[str, ...]
    """Names of its files."""


def render(clips: Mapping[str, ParsedClip]) -> bytes:
    """The page that lists clips by id. A clip without a page has no link."""
    events = sum(bool(clip.heard or clip.seen) for clip in clips.values())
    body = template("index.html").substitute(
        facts=f"{len(clips)} clips, {events} with events",
        rows="\n".join(_row(clip_id, clip) for clip_id, clip in clips.items()),
    )
    return document("Parsed clips", body).encode()


def _row(clip_id: str, clip: ParsedClip) -> str:
    name = f"<bdi>{text(clip_id).replace('_', '_<wbr>')}</bdi>"  # a long one breaks there
    for file in clip.files:
        if file.endswith(".html"):
            name = f'<a href="{quote(file)}">{name}</a>'
    return (
        f'<tr><th scope="row">{name}</th><td class="number">{clip.seconds} s</td>'
        f'<td class="names" data-head="heard">{_chips("audio", clip.heard)}</td>'
        f'<td class="names" data-head="seen">{_chips("visual", clip.seen)}</td>'
        f'<td class="note">{text(clip.note) if clip.note else ""}</td></tr>'
    )


def _chips(modality: str, labels: Sequence[str]) -> str:
    return "".join(
        f'<span class="chip {modality}" dir="auto">{text(label.replace("_", " "))}</span>'
        for label in labels
    )
