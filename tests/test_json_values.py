"""JSON objects as dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from avvp_dist.json_values import parse_value


@dataclass(frozen=True)
class Leaf:
    name: str
    weight: float


@dataclass(frozen=True)
class Tree:
    age: int
    leaves: tuple[Leaf, ...]
    rows: tuple[tuple[float, ...], ...] | None
    notes: Mapping[str, str]
    anything: object = None


WHOLE: dict[str, Any] = {
    "age": 3,
    "leaves": [{"name": "a", "weight": 1}, {"name": "b", "weight": 0.5}],
    "rows": [[1.0], []],
    "notes": {"a": "b"},
}


def test_a_whole_object_becomes_its_value() -> None:
    tree = parse_value(Tree, WHOLE)
    assert tree == Tree(3, (Leaf("a", 1), Leaf("b", 0.5)), ((1.0,), ()), {"a": "b"})
    assert parse_value(Tree, {**WHOLE, "rows": None, "anything": [1]}).rows is None
    assert asdict(tree)["leaves"][1]["weight"] == 0.5


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"age": -1}, "age is -1, expected 0 or more"),
        ({"age": True}, "age is True, expected int"),
        ({"age": None}, "age is None, expected int"),
        ({"more": 1}, "more is unknown"),
        ({"leaves": [{"name": "a"}]}, r"leaves\[0\]\.weight is missing"),
        ({"rows": [[1.0], ["x"]]}, r"rows\[1\]\[0\] is 'x', expected float"),
        ({"notes": {"a": 1}}, r"notes\.a is 1, expected str"),
    ],
)
def test_a_wrong_entry_is_named(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_value(Tree, {**WHOLE, **changes})
