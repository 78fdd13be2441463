"""The house: a file imports only from its own floor or lower, and the ground floor is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = {
    "avvp_dist": 0,
    "avvp_dist.errors": 0,
    "avvp_dist.entry": 0,
    "avvp_dist.commit": 0,
    "avvp_dist.ledger": 0,
    "avvp_dist.hashing": 0,
    "avvp_dist.json_values": 0,
    "avvp_dist.task_gpu": 0,
    "avvp_dist.config": 0,
    "avvp_dist.runtime": 0,
    "avvp_dist.shards": 1,
    "avvp_dist.loading": 1,
    "avvp_dist.annotations": 1,
    "avvp_dist.models": 1,
    "avvp_dist.objectives": 1,
    "avvp_dist.evaluation": 1,
    "avvp_dist.tracking": 1,
    "avvp_dist.features": 1,
    "avvp_dist.packing": 2,
    "avvp_dist.extraction": 2,
    "avvp_dist.similarity": 2,
    "avvp_dist.grounding": 2,
    "avvp_dist.decontamination": 2,
    "avvp_dist.training": 2,
    "avvp_dist.tasks": 2,
    "avvp_dist.parsing": 2,
    "avvp_dist.serving": 2,
    "avvp_dist.reproduction": 3,
    "avvp_dist.studies": 3,
    "avvp_dist.demo": 3,
    "avvp_dist.stages": 3,
    "avvp_dist.cli": 3,
    "avvp_dist.__main__": 3,
    "launch": 3,
    "tools": 3,
}
"""Floor of each module, and of each room with all that is in it (docs/design.md, `Floors`)."""

HEAVY = ("torch", "deepspeed", "ray", "mlflow", "faiss", "numpy")
GROUND = (
    *(
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "avvp_dist/config").glob("*.py"))
    ),
    "avvp_dist/stages.py",
    "avvp_dist/cli.py",
    "avvp_dist/errors.py",
    "avvp_dist/commit.py",
    "avvp_dist/runtime/supervisor.py",
    "avvp_dist/runtime/slurm.py",
)


def files_below(*folders: str) -> list[str]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def floor_of(module: str) -> int:
    """The floor of a module; KeyError for a room that is not in the house."""
    room = module
    while room not in FLOORS or room == "avvp_dist" != module:
        room, dot, _ = room.rpartition(".")
        if not dot:
            raise KeyError(f"{module} stands on no floor")
    return FLOORS[room]


def imports(file: str, source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A package's `.` is itself, a module's `.` is the package it lies in.
            package = module_of(file)
            if not file.endswith("/__init__.py"):
                package = package.rpartition(".")[0]
            base = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                path = ROOT / inner.replace(".", "/")
                is_module = path.with_suffix(".py").is_file() or path.is_dir()
                yield node.lineno, inner if is_module else base


def upward_imports(file: str, source: str) -> list[str]:
    """What a file imports from above its own floor, one line each."""
    floor = floor_of(module_of(file))
    return [
        f"{file}:{line} (floor {floor}) imports {name} (floor {floor_of(name)})"
        for line, name in imports(file, source)
        if name.split(".")[0] in ("avvp_dist", "launch", "tools") and floor_of(name) > floor
    ]


@pytest.mark.parametrize("file", files_below("avvp_dist", "launch", "tools"))
def test_a_file_imports_from_its_floor_or_lower(file: str) -> None:
    assert upward_imports(file, (ROOT / file).read_text()) == []


@pytest.mark.parametrize(
    ("file", "source", "offence"),
    [
        ("config/shards.py", "import avvp_dist.shards.tars", "avvp_dist.shards.tars"),
        ("shards/schema.py", "from avvp_dist.grounding import job", "avvp_dist.grounding.job"),
        ("shards/schema.py", "from ..grounding.job import ground", "avvp_dist.grounding.job"),
        (
            "models/parser.py",
            "def f():\n    from avvp_dist.training.trainer import Trainer",
            "avvp_dist.training.trainer",
        ),
        ("training/engine.py", "from avvp_dist import demo", "avvp_dist.demo"),
    ],
)
def test_an_upward_import_is_named(file: str, source: str, offence: str) -> None:
    (line,) = upward_imports(f"avvp_dist/{file}", source)
    assert line.startswith(f"avvp_dist/{file}:")
    assert f"imports {offence} (floor " in line


@pytest.mark.parametrize("file", GROUND)
def test_the_ground_floor_imports_nothing_heavy(file: str) -> None:
    names = imports(file, (ROOT / file).read_text())
    assert [f"{file}:{line} imports {name}" for line, name in names if name in HEAVY] == []
    program = f"import sys, {module_of(file)}; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split() == [], f"import {module_of(file)} brings {loaded.stdout}"


@pytest.mark.parametrize("file", [f for f in files_below("launch", "tools") if f.count("/") == 1])
def test_an_entry_point_holds_no_logic(file: str) -> None:
    lines = len((ROOT / file).read_text().splitlines())
    assert lines < 40, f"{file} has {lines} lines: move its logic into avvp_dist"
