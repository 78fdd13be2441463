"""The timeline of a clip: what a parser heard and saw in it, second by second, and as events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import sha256
from avvp_dist.errors import DataError
from avvp_dist.evaluation.events import MODALITIES, Event
from avvp_dist.evaluation.predictions import LARGEST, ROUNDING
from avvp_dist.evaluation.scores import RULES
from avvp_dist.json_values import parse_value

SCHEMA = "avvp-timeline-1"
"""Version of the JSON form; it changes when an older reader would misread a newer timeline."""

_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
_MAXIMUM_TICKS = 13

Row = tuple[float, ...]
Rows = tuple[Row, ...]
Layers = tuple[Rows, ...]


@dataclass(frozen=True)
class ParserModel:
    """The parser that made a timeline."""

    version: str
    """`NAME/VERSION` in the registry, or the folder of the export."""
    digest: str
    """`commit.folder_digest` of the export."""
    extractor: str
    """Name and version of the backbones whose features it reads."""
    snippets: int
    """T: seconds that it reads at once."""


@dataclass(frozen=True)
class Timeline:
    """A parsed clip of N seconds and C classes; axes of size 2 are audio, visual.

    Raises:
        ValueError: if the values contradict each other, naming one.
    """

    id: str
    seconds: int
    model: ParserModel
    rule: str
    """Decision rule, see `evaluation.scores.decide`."""
    thresholds: Rows
    """Threshold of each modality and class, `[2, C]`."""
    classes: tuple[str, ...]
    missing: Mapping[str, str]
    """Modalities that the clip lacks, and why. They have no events."""
    events: tuple[Event, ...]
    """Events by onset, then modality and class."""
    frame_prob: Layers
    """Probability in each second, `[N, 2, C]`."""
    video_prob: Rows | None
    """Probability in the window around each second, `[N, C]`; None unless the rule needs it."""
    modality_prob: Layers | None
    """Probability of each modality in that window, `[N, 2, C]`; None unless the rule needs it."""

    def __post_init__(self) -> None:
        for fault in self._faults():
            raise ValueError(fault)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """`frame_prob` as an array, `[N, 2, C]`."""
        return np.array(self.frame_prob, np.float32).reshape(self.seconds, 2, len(self.classes))

    @property
    def padding(self) -> int:
        """Number of empty seconds that the parser read after the clip's end."""
        return max(0, self.model.snippets - self.seconds)

    def active_classes(self) -> tuple[int, ...]:
        """Numbers of the classes that have an event, by their first onset."""
        return tuple(dict.fromkeys(self.classes.index(event.label) for event in self.events))

    def shown_classes(self) -> tuple[int, ...]:
        """Numbers of the classes to draw: the active ones, or else the three most probable."""
        likeliest = np.argsort(-self.probabilities.max((0, 1)), kind="stable")[:3]
        return self.active_classes() or tuple(likeliest.tolist())

    def events_of(self, modality: str, label: str) -> list[Event]:
        """Events of one modality and class, by onset."""
        return [one for one in self.events if (one.modality, one.label) == (modality, label)]

    def notes(self) -> Iterator[str]:
        """Sentences that a reader of the timeline has to know."""
        for modality, reason in self.missing.items():
            yield f"No {modality} events: {reason}."
        if self.padding:
            yield (
                f"The clip has {self.seconds} s and the parser reads {self.model.snippets} s: the "
                "rest was empty."
            )
        if self.seconds > self.model.snippets:
            yield (
                f"Parsed in windows of {self.model.snippets} s; where two overlap, their "
                "probabilities are averaged."
            )
        if not self.events:
            yield "No event reaches its threshold: the most probable classes are drawn."

    def result_digest(self) -> str:
        """Hex SHA-256 of the result, whatever name the parser was given by."""
        return sha256(replace(self, model=replace(self.model, version="")).to_json().encode())

    def to_json(self) -> str:
        """Text of the timeline's JSON file, an entry a line."""
        entries = {"schema": SCHEMA, **{one.name: getattr(self, one.name) for one in fields(self)}}
        entries["model"] = asdict(self.model)
        entries["events"] = [asdict(event) for event in self.events]
        lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in entries.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Timeline:
        """Parse the text of `to_json`.

        Args:
            where: the text's origin, such as its file, named in errors.

        Raises:
            DataError: if it has another schema version, or an entry is missing or wrong.
        """
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError):
            raise DataError(f"{where} is not JSON") from None
        if not isinstance(entries, dict) or "schema" not in entries:
            raise DataError(f"{where} is no timeline: it has no entry schema")
        if (version := entries.pop("schema")) != SCHEMA:
            raise DataError(
                f"{where} has the schema {version}, this version reads {SCHEMA}",
                remedy="Parse the clip again with this version",
            )
        try:
            return parse_value(cls, entries)
        except ValueError as error:
            raise DataError(f"{where} is damaged: {error}", remedy="Parse the clip again") from None

    def _faults(self) -> Iterator[str]:
        count = len(self.classes)
        shapes = {
            "thresholds": (2, count),
            "frame_prob": (self.seconds, 2, count),
            "video_prob": (self.seconds, count),
            "modality_prob": (self.seconds, 2, count),
        }
        if not self.seconds or not count:
            yield f"a timeline has seconds and classes, not {self.seconds} and {count}"
        if len(set(self.classes)) < count:
            yield "classes: a name is there twice"
        if self.rule not in RULES:
            yield f"rule {self.rule!r} is not one of {', '.join(RULES)}"
        if not self.missing.keys() <= set(MODALITIES):
            yield f"missing: {sorted(self.missing)} are not all of {', '.join(MODALITIES)}"
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values is not None or name in ("frame_prob", f"{self.rule}_prob"):
                yield from _faults_of_array(name, values, shape)
        for number, event in enumerate(self.events):
            if event.modality not in MODALITIES or event.label not in self.classes:
                yield f"events[{number}] is of no known modality and class"
            if not event.onset < event.offset <= self.seconds:
                yield f"events[{number}] is not within the clip's {self.seconds} s"
            if event.modality in self.missing:
                yield f"events[{number}] is of a modality that is missing"


def tick_step(seconds: int) -> int:
    """Seconds between two labels of a time axis."""
    fitting = (step for step in _STEPS if seconds / step < _MAXIMUM_TICKS)
    return next(fitting, -(-seconds // _MAXIMUM_TICKS))


def _faults_of_array(name: str, values: object, shape: tuple[int, ...]) -> Iterator[str]:
    """Faults of nested numbers: another shape, or no probabilities."""
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError):  # None, or rows of different lengths
        array = np.empty(0)
    if array.shape != shape:
        yield f"{name} is not of the shape {list(shape)}"
    elif not np.isfinite(array).all():
        yield f"{name} is not finite"
    elif name in LARGEST and not ((array >= 0) & (array <= LARGEST[name] + ROUNDING)).all():
        yield f"{name} is not within 0 and {LARGEST[name]:g}"
