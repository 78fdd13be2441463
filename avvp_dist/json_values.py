"""A JSON object as a frozen dataclass, every entry checked.

The types of the dataclass's fields say what is expected: numbers, text, `tuple[X, ...]`,
`Mapping[str, X]`, `X | None`, other dataclasses, or `object` for anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
V = TypeVar("V")
_types = cache(get_type_hints)


def parse_value(kind: type[T], value: object, where: str = "") -> T:
    """A JSON object as the dataclass `kind`: all its fields and no others, each of its type.

    Args:
        where: place of the object in its file, such as `shards[3]`; empty for the whole file.

    Raises:
        ValueError: naming the entry that is missing, unknown or of another type.
    """
    entries = _of_type(dict, value, where)
    types = _types(kind)
    required = {field.name for field in fields(kind) if field.default is MISSING}
    for name in sorted(required - entries.keys()) + sorted(entries.keys() - types.keys()):
        state = "missing" if name in types else "unknown"
        raise ValueError(f"{_joined(where, name)} is {state}")
    return kind(**{key: _field(types[key], entries[key], _joined(where, key)) for key in entries})


def _field(annotation: Any, value: object, where: str) -> Any:
    """A JSON value as the type that annotates a dataclass's field."""
    arguments = get_args(annotation)
    if isinstance(annotation, UnionType):  # X | None
        return None if value is None else _field(arguments[0], value, where)
    if get_origin(annotation) is tuple:
        items = _of_type(list, value, where)
        return tuple(_field(arguments[0], item, f"{where}[{n}]") for n, item in enumerate(items))
    if get_origin(annotation) is Mapping:
        entries = _of_type(dict, value, where)
        return {key: _field(arguments[1], entries[key], _joined(where, key)) for key in entries}
    if isinstance(annotation, type) and is_dataclass(annotation):
        return parse_value(annotation, value, where)
    return value if annotation is object else _of_type(annotation, value, where)


def _of_type(kind: type[V], value: object, where: str) -> V:
    """The value, if it is of a type. An int passes as a float; an int may not be negative."""
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{where} is {value!r}, expected {kind.__name__}")
    if isinstance(value, int) and kind is int and value < 0:
        raise ValueError(f"{where} is {value}, expected 0 or more")
    return cast("V", value)


def _joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
