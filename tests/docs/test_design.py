"""The page on the design says what the code is."""

from __future__ import annotations

import re
from pathlib import Path

from tests.test_floors import FLOORS

ROOT = Path(__file__).resolve().parents[2]


def test_the_floors_are_those_of_the_test() -> None:
    page = (ROOT / "docs/design.md").read_text()
    described = {}
    for floor, rooms in re.findall(r"^\| (\d) \| (.*?) \|", page, re.MULTILINE):
        for room in re.findall(r"`([\w.]+)/?`", rooms):
            name = room.removesuffix(".py")
            described[name if name in FLOORS else f"avvp_dist.{name}"] = int(floor)
    built = {name: floor for name, floor in FLOORS.items() if path_of(name).exists()}
    del built["avvp_dist"]
    assert described == built


def test_named_files_exist() -> None:
    pages = [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for file in re.findall(r"`([a-z_]+(?:/[a-z_]+)+\.py)`", page.read_text()):
            assert any((ROOT / top / file).is_file() for top in ("", "avvp_dist")), file


def path_of(name: str) -> Path:
    path = ROOT / name.replace(".", "/")
    return path if path.is_dir() else path.with_suffix(".py")
