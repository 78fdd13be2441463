"""ELAN's annotation format (EAF 3.0): a tier per modality and class.

Events of one class and modality never overlap, which ELAN demands of the annotations in a tier.
The file links to no media: ELAN adds them with Edit, Linked Files.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from avvp_dist.evaluation.events import Event
from avvp_dist.parsing.formats.names import distinct_lines, single_line
from avvp_dist.parsing.timeline import Timeline

_TYPE = "event"
_XSI = "http://www.w3.org/2001/XMLSchema-instance"


def render(timeline: Timeline) -> dict[str, bytes]:
    """The file of a timeline by suffix."""
    document = Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": single_line(timeline.model.version),
            "DATE": "1970-01-01T00:00:00+00:00",  # the same events make the same bytes
            "FORMAT": "3.0",
            "VERSION": "3.0",
            "xmlns:xsi": _XSI,
            "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
        },
    )
    header = SubElement(document, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    SubElement(header, "PROPERTY", NAME="clip").text = single_line(timeline.id)
    _add_times(document, timeline.events)
    _add_tiers(document, timeline)
    kind = {"LINGUISTIC_TYPE_ID": _TYPE, "TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false"}
    SubElement(document, "LINGUISTIC_TYPE", kind)
    indent(document)
    return {".eaf": tostring(document, "utf-8", xml_declaration=True)}


def _add_times(document: Element, events: Sequence[Event]) -> None:
    """Append two times per event: shared ones would move other events in ELAN's editor."""
    times = [(event.onset, f"b{n}") for n, event in enumerate(events)]
    times += [(event.offset, f"e{n}") for n, event in enumerate(events)]
    order = SubElement(document, "TIME_ORDER")
    for seconds, name in sorted(times, key=lambda time: time[0]):
        SubElement(order, "TIME_SLOT", TIME_SLOT_ID=name, TIME_VALUE=str(1000 * seconds))


def _add_tiers(document: Element, timeline: Timeline) -> None:
    """Append a tier for each modality and class that has events."""
    names = dict(zip(timeline.classes, distinct_lines(timeline.classes), strict=True))
    tiers: dict[tuple[str, str], Element] = {}
    for number, event in enumerate(timeline.events):
        name, place = names[event.label], (event.modality, event.label)
        if place not in tiers:
            entries = {"TIER_ID": f"{event.modality}: {name}", "LINGUISTIC_TYPE_REF": _TYPE}
            tiers[place] = SubElement(document, "TIER", entries)
        aligned = SubElement(
            SubElement(tiers[place], "ANNOTATION"),
            "ALIGNABLE_ANNOTATION",
            ANNOTATION_ID=f"a{number}",
            TIME_SLOT_REF1=f"b{number}",
            TIME_SLOT_REF2=f"e{number}",
        )
        SubElement(aligned, "ANNOTATION_VALUE").text = name
