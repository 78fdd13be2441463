"""The reference of the documentation: made from the code, whole, and true to it."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from avvp_dist.config.option import keys_of
from avvp_dist.stages import STAGES
from docs.reference import room_pages, stage_pages

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if stage.config])
def test_every_key_of_a_stage_is_in_the_reference(name: str) -> None:
    config = STAGES[name].config
    assert config is not None
    _, text = stage_pages()[f"configuration/{name}.md"]
    rows = re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(key.name for key in keys_of(config))


def test_a_row_has_type_range_default_and_meaning() -> None:
    _, text = stage_pages()["configuration/pretrain.md"]
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert "int, 0 to 3 | `0`" in rows["trainer.zero_stage"]
    assert "`uni` or `cross` or `multi` | `multi`" in rows["objective.name"]
    assert "required" in rows["data.shards"]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows.values())


def test_every_room_has_a_page() -> None:
    rooms = {path.parent.name for path in (ROOT / "avvp_dist").glob("*/__init__.py")}
    assert {f"api/{room}.md" for room in rooms} <= set(room_pages())


def test_docstrings_describe_parameters_that_exist(caplog: pytest.LogCaptureFixture) -> None:
    griffe = pytest.importorskip("griffe")
    with caplog.at_level(logging.WARNING, "griffe"):
        package = griffe.load("avvp_dist", search_paths=[ROOT], docstring_parser="google")
        remaining = [package]
        while remaining:
            item = remaining.pop()
            if item.is_alias:
                continue
            if item.docstring:
                item.docstring.parse()
            remaining += item.members.values()
    assert [record.getMessage() for record in caplog.records] == []
