"""Options: what a key knows of itself, and which values it refuses."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from avvp_dist import config as configs
from avvp_dist.config.option import keys_of, nearest, option, section


@dataclass
class Inner:
    size: int = option(1, "size in snippets", minimum=1, maximum=9)
    names: list[str] = option(["a"], "some names", choices=("a", "bee"))


@dataclass
class Base:
    place: str = option("", "a folder", required=True)


@dataclass
class Outer(Base):
    inner: Inner = section(Inner, size=4)
    rate: float = option(0.5, "a rate")


KEYS = {key.name: key for key in keys_of(Outer)}


def test_keys_are_dotted_and_own_ones_stand_before_inherited_ones() -> None:
    assert list(KEYS) == ["inner.size", "inner.names", "rate", "place"]
    assert (KEYS["inner.size"].default, KEYS["inner.names"].default) == (4, ["a"])
    assert [key.is_list for key in KEYS.values()] == [False, True, False, False]
    assert KEYS["inner.names"].type_name == "a|bee" and KEYS["rate"].type_name == "float"


def test_configs_share_no_list() -> None:
    Outer().inner.names.append("bee")
    assert Outer().inner.names == ["a"]


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("inner.size", 0, "inner.size=0 is below 1"),
        ("inner.size", 10, "inner.size=10 is above 9"),
        ("inner.names", ["a", "be"], "inner.names=be is not one of a, bee, did you mean bee?"),
        ("rate", float("nan"), "rate=nan is not a finite number"),
        ("place", "", "place must be given: a folder"),
    ],
)
def test_a_broken_rule_is_one_line(name: str, value: object, line: str) -> None:
    assert list(KEYS[name].faults(value)) == [line]


@pytest.mark.parametrize(
    ("name", "value"), [("inner.size", 9), ("inner.names", []), ("rate", -1.0), ("place", "x")]
)
def test_a_value_within_the_rules_has_no_fault(name: str, value: object) -> None:
    assert list(KEYS[name].faults(value)) == []


def test_the_nearest_word_is_found_whatever_its_distance() -> None:
    assert nearest("pak", ["calibrate", "pack"]) == "pack"
    assert nearest("zzz", []) == ""


@pytest.mark.parametrize(
    "kind", [getattr(configs, name) for name in configs.__all__ if name.endswith("Config")]
)
def test_every_key_explains_itself_in_one_line(kind: type) -> None:
    for key in keys_of(kind):
        assert key.option.help and "\n" not in key.option.help, key.name
        for choice in (*key.option.choices,) if not key.is_list else ():
            assert key.default == "" or key.default in key.option.choices, choice
