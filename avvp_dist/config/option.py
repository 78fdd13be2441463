"""A config key: its default, and what it says of itself."""

from __future__ import annotations

from dataclasses import field
from typing import Any, TypeVar

T = TypeVar("T")


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    required: bool = False,
) -> Any:
    """A config key: its default, one line of help, and what values it may take."""
    metadata = {
        "help": help,
        "choices": choices,
        "least": minimum,
        "most": maximum,
        "required": required,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type[T], **changes: Any) -> T:
    """A nested group of keys, with other defaults where `changes` says so."""
    made: T = field(default_factory=lambda: kind(**changes))
    return made
