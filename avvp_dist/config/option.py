"""Options: how a dataclass field becomes a config key that explains and checks itself."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, get_origin, get_type_hints

T = TypeVar("T")

_OPTION = "option"


@dataclass(frozen=True)
class Option:
    """The help line of a key, and the values it accepts."""

    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    required: bool = False
    positional: bool = False
    """Whether bare words of the command line are values of this key."""


def option(
    default: T,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    required: bool = False,
    positional: bool = False,
) -> T:
    """Declare a config key as the field of a dataclass: its default, one line of help, its rules.

    `choices`, `minimum` and `maximum` hold for each value of a list or mapping. A required key has
    a default that is empty and not accepted.
    """
    metadata = {_OPTION: Option(help, choices, minimum, maximum, required, positional)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type[T], **changes: object) -> T:
    """Declare a nested group of keys, with other defaults where `changes` says so."""
    made: T = field(default_factory=lambda: kind(**changes))
    return made


@dataclass(frozen=True)
class Key:
    """One key of a config class.

    `name` is dotted, as in `trainer.epochs`; `type` is its annotation, such as `list[str]`.
    """

    name: str
    type: object
    default: object
    option: Option

    @property
    def is_list(self) -> bool:
        """Whether the key takes several values."""
        return get_origin(self.type) is list

    @property
    def is_mapping(self) -> bool:
        """Whether the key has keys of its own, of any name."""
        return get_origin(self.type) is dict

    @property
    def type_name(self) -> str:
        """The choices of the key, or the name of its type."""
        plain = self.type.__name__ if isinstance(self.type, type) else str(self.type)
        return "|".join(self.option.choices) or (str(self.type) if self.is_list else plain)

    def faults(self, value: object) -> Iterator[str]:
        """One line for each rule that a value of the right type breaks."""
        if self.option.required and value in ("", []):
            yield f"{self.name} must be given: {self.option.help}"
            return
        values: Iterable[object] = [value]
        if isinstance(value, Sequence) and not isinstance(value, str):
            values = value
        elif isinstance(value, Mapping):
            values = value.values()
        for one in values:
            yield from self._faults_of_one(one)

    def _faults_of_one(self, value: object) -> Iterator[str]:
        choices, minimum, maximum = self.option.choices, self.option.minimum, self.option.maximum
        if choices and value not in choices:
            near = nearest(str(value), choices)
            hint = f", did you mean {near}?" if near else ""
            yield f"{self.name}={value} is not one of {', '.join(choices)}{hint}"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{self.name}={value} is not a finite number"
        elif isinstance(value, int | float) and minimum is not None and value < minimum:
            yield f"{self.name}={value} is below {minimum}"
        elif isinstance(value, int | float) and maximum is not None and value > maximum:
            yield f"{self.name}={value} is above {maximum}"


def keys_of(kind: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a config class, its own before inherited ones."""
    yield from _keys(kind, kind(), prefix)


def nearest(word: str, known: Sequence[str]) -> str:
    """The known word that `word` resembles most; empty if it resembles none."""
    return next(iter(difflib.get_close_matches(word, known, 1, 0.0)), "")


def _keys(kind: type, defaults: object, prefix: str) -> Iterator[Key]:
    types = get_type_hints(kind)
    own = vars(kind).get("__annotations__", {})
    for item in sorted(dataclasses.fields(kind), key=lambda item: item.name not in own):
        name, type_, default = prefix + item.name, types[item.name], getattr(defaults, item.name)
        if dataclasses.is_dataclass(type_) and isinstance(type_, type):
            yield from _keys(type_, default, f"{name}.")
        else:
            yield Key(name, type_, default, item.metadata[_OPTION])
