"""The page of a clip: a player if there is one, and a timeline whose events are buttons.

Positions are in the page's style, as `--at` and `--until` in seconds: its policy allows no style
in attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from avvp_dist.evaluation.events import MODALITIES, Event
from avvp_dist.parsing.formats.document import asset, document, template, text
from avvp_dist.parsing.formats.media import Media, data_url, image_url
from avvp_dist.parsing.timeline import Timeline, tick_step

_MAXIMUM_STEP = 10
"""Seconds between two labels of a chart that is wider than its window."""
_FAINTEST = 0.02
"""Probability below which nothing is drawn."""


def render(timeline: Timeline, media: Media | None) -> dict[str, bytes]:
    """The page of a timeline by its suffix."""
    media = media or Media()
    step = min(_MAXIMUM_STEP, tick_step(timeline.seconds))
    hint = "<kbd>Enter</kbd> or a click goes to an event, <kbd>←</kbd> <kbd>→</kbd> move through "
    hint += "time, <kbd>↑</kbd> <kbd>↓</kbd> between rows."
    body = template("page.html").substitute(
        id=text(timeline.id),
        facts=_facts(timeline),
        notes=_notes(timeline.notes()),
        player=_player(timeline, media),
        seconds=timeline.seconds,
        rows="\n".join(_rows(timeline, media, step)),
        hint=hint if timeline.events else "",
        table=_table(timeline),
        footer=_footer(timeline),
    )
    style = "".join(_positions(timeline, step))
    page = document(timeline.id, body, style=style, script=asset("page.js"))
    return {".html": page.encode()}


def _facts(timeline: Timeline) -> str:
    counts = [sum(one.modality == name for one in timeline.events) for name in MODALITIES]
    parts = [f"{timeline.seconds} s", f"{counts[0]} audio and {counts[1]} visual events"]
    thresholds = {value for row in timeline.thresholds for value in row}
    limit = f"threshold {thresholds.pop():g}" if len(thresholds) == 1 else "thresholds by class"
    return " · ".join((*parts, f"rule {timeline.rule}", limit))


def _footer(timeline: Timeline) -> str:
    model = timeline.model
    extractor = f", features {text(model.extractor)}" if model.extractor else ""
    return f"Parser {text(model.version)}, SHA-256 {text(model.digest[:12])}{extractor}"


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{text(note)}</li>" for note in notes)
    return f'<ul class="notes" aria-label="Notes">{items}</ul>' if items else ""


def _player(timeline: Timeline, media: Media) -> str:
    if not media.player:
        return ""
    element = "audio" if media.player_type.startswith("audio/") else "video"
    source = data_url(media.player, media.player_type)
    return (
        f'<{element} controls preload="auto" src="{source}" '
        f'aria-label="{text(timeline.id)}"></{element}>'
    )


def _rows(timeline: Timeline, media: Media, step: int) -> Iterator[str]:
    """The rows of the chart, from the top down."""
    seconds = timeline.seconds
    yield _row("axis", "<small>seconds</small>", "".join(_ticks(seconds, step)))
    if media.thumbnails:
        yield _row("pictures", "<small>picture</small>", _strip("", media.thumbnails))
    if media.log_mel:
        yield _row("pictures", "<small>sound</small>", _strip("mel", (media.log_mel,)))
    names = "".join(f'<small class="{name}">{name}</small>' for name in MODALITIES)
    for column in timeline.shown_classes():
        label = text(timeline.classes[column].replace("_", " "))
        lanes = "".join(_lane(timeline, modality, column) for modality in MODALITIES)
        yield _row("class", f'<b dir="auto" title="{label}">{label}</b>{names}', lanes)


def _row(kind: str, name: str, lanes: str) -> str:
    return (
        f'<div class="row {kind}"><div class="name">{name}</div>'
        f'<div class="lanes">{lanes}</div></div>'
    )


def _ticks(seconds: int, step: int) -> Iterator[str]:
    """Labels of the axis; the last label is N, whatever the step."""
    for second in range(0, seconds + 1, step):
        if seconds - step / 2 < second < seconds:
            continue  # it would touch the last one
        ends = {0: " first", seconds: " last"}.get(second, "")
        yield f'<span class="tick a{second}{ends}">{second}</span>'
    if seconds % step:
        yield f'<span class="tick a{seconds} last">{seconds}</span>'


def _strip(kind: str, images: Sequence[bytes]) -> str:
    shown = "".join(f'<img alt="" src="{image_url(image)}">' for image in images)
    return f'<div class="strip {kind}">{shown}</div>'


def _lane(timeline: Timeline, modality: str, column: int) -> str:
    """The lane of one class and modality: its probabilities as shades, and its events."""
    if modality in timeline.missing:
        return f'<div class="lane {modality} missing"></div>'
    probabilities = timeline.probabilities[:, MODALITIES.index(modality), column]
    shades = "".join(
        f'<rect x="{second}" width="1" height="1" fill-opacity="{probability:.2f}"/>'
        for second, probability in enumerate(probabilities.tolist())
        if probability >= _FAINTEST
    )
    events = timeline.events_of(modality, timeline.classes[column])
    return (
        f'<div class="lane {modality}"><svg viewBox="0 0 {timeline.seconds} 1" '
        f'preserveAspectRatio="none" aria-hidden="true">{shades}</svg>'
        f"{''.join(map(_button, events))}</div>"
    )


def _button(event: Event) -> str:
    said = (
        f"{event.label.replace('_', ' ')}, {event.modality}, {event.onset} to {event.offset} s, "
        f"confidence {event.confidence:.2f}"
    )
    return (
        f'<button type="button" class="event a{event.onset} u{event.offset}" '
        f'data-onset="{event.onset}" data-offset="{event.offset}" '
        f'title="{text(said)}" aria-label="{text(said)}"><span>{event.confidence:.2f}</span>'
        "</button>"
    )


def _table(timeline: Timeline) -> str:
    """The events as a table, which says all that the chart says of them."""
    if not timeline.events:
        return '<p class="facts">None.</p>'
    cells = "".join(f'<th scope="col">{name}</th>' for name in ("Class", "Modality"))
    cells += "".join(
        f'<th scope="col" class="number">{name}</th>' for name in ("From", "To", "Confidence")
    )
    rows = "\n".join(
        f'<tr><th scope="row" dir="auto">{text(event.label.replace("_", " "))}</th>'
        f'<td class="{event.modality}">{event.modality}</td>'
        f'<td class="number">{event.onset} s</td><td class="number">{event.offset} s</td>'
        f'<td class="number">{event.confidence:.2f}</td></tr>'
        for event in timeline.events
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>\n{rows}\n</tbody></table>"


def _positions(timeline: Timeline, step: int) -> Iterator[str]:
    """Style that says where seconds are: of labels and events alone."""
    seconds = timeline.seconds
    yield f".chart {{ --seconds: {seconds}; --step: {step}; }}\n"
    onsets = {event.onset for event in timeline.events}
    for second in sorted(onsets | {*range(0, seconds + 1, step), seconds}):
        yield f".a{second} {{ --at: {second}; }}\n"
    for second in sorted({event.offset for event in timeline.events}):
        yield f".u{second} {{ --until: {second}; }}\n"
