"""How the house is kept: what a reader has to hold in mind stays small, and each thing has a place.

Where each room stands, and what it may import, is in test_floors.py.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.test_floors import ROOT, files_below, imports, module_of

SOURCES = files_below("avvp_dist", "launch", "tools")
ROOMS = sorted({Path(file).parent.as_posix() for file in SOURCES if file.count("/") > 1})
MAXIMUM_LINES, MAXIMUM_FUNCTION_LINES, MAXIMUM_ROOM_FILES, MAXIMUM_ANY = 400, 60, 15, 60
OPENINGS = ("Of ", "What ", "The same", "By which", "Whose ", "How often", "As ")
"""Words that no docstring starts with: it starts with a noun or a verb."""
UNMIRRORED = ("tests/cluster/", "tests/docs/", "tests/launch/", "tests/tools/")
"""Tests of what takes several processes or hosts, of the pages, of shims, recipes and benches."""
OF_THE_HOUSE = ("tests/test_floors.py", "tests/test_house.py", "tests/test_wheel.py")


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def docstrings(file: str) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring, those of attributes included."""
    for node in ast.walk(tree(file)):
        match node:
            case ast.Expr(value=ast.Constant(value=str() as text)):
                yield node.lineno, text.strip()


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Names that import one another in a circle; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def import_graph() -> dict[str, set[str]]:
    """Files of `avvp_dist` as modules, each with those that it imports anywhere."""
    modules = {module_of(file): file for file in SOURCES if file.startswith("avvp_dist/")}
    return {
        module: {name for _, name in imports(file, (ROOT / file).read_text()) if name in modules}
        - {module}
        for module, file in modules.items()
    }


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_no_file_imports_itself_through_others() -> None:
    assert cycle(import_graph()) == []


def test_no_room_imports_itself_through_others() -> None:
    rooms: dict[str, set[str]] = {}
    for module, imported in import_graph().items():
        others = {room_of(one) for one in imported} - {room_of(module), "avvp_dist"}
        rooms.setdefault(room_of(module), set()).update(others)
    assert cycle(rooms) == []


def test_a_circle_is_named() -> None:
    assert set(cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_small(room: str) -> None:
    names = [path.name for path in (ROOT / room).glob("*.py")]
    assert len(names) <= MAXIMUM_ROOM_FILES, f"{room} holds {len(names)} files: it is two rooms"


@pytest.mark.parametrize("room", [room for room in ROOMS if room.startswith("avvp_dist/")])
def test_a_room_says_what_lives_there_and_what_may_change(room: str) -> None:
    text = ast.get_docstring(tree(f"{room}/__init__.py")) or ""
    assert len(text.splitlines()) > 1, f"{room}/__init__.py: say what may change by itself"


@pytest.mark.parametrize("file", [*SOURCES, *files_below("tests")])
def test_a_file_and_its_functions_are_short(file: str) -> None:
    lines = len((ROOT / file).read_text().splitlines())
    assert lines <= MAXIMUM_LINES, f"{file} has {lines} lines"
    functions = (n for n in ast.walk(tree(file)) if isinstance(n, ast.FunctionDef))
    lengths = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions}
    long = {name: length for name, length in lengths.items() if length > MAXIMUM_FUNCTION_LINES}
    assert long == {}, f"{file}: lines of functions that are too long"


def mirror_of(file: str) -> str:
    """The test file of a module: avvp_dist/ROOM/X.py has tests/ROOM/test_X.py."""
    path = Path(file).relative_to("avvp_dist")
    return (Path("tests") / path.parent / f"test_{path.name}").as_posix()


MODULES = [f for f in SOURCES if f.startswith("avvp_dist/") and Path(f).stem[:2] != "__"]


@pytest.mark.parametrize("file", MODULES)
def test_a_module_has_its_tests(file: str) -> None:
    assert (ROOT / mirror_of(file)).is_file(), f"{file} has no {mirror_of(file)}"


def test_tests_have_their_module() -> None:
    mirrors = {mirror_of(file) for file in MODULES}
    tests = [file for file in files_below("tests") if Path(file).name.startswith("test_")]
    left = [f for f in tests if f not in mirrors and not f.startswith(UNMIRRORED)]
    assert [file for file in left if file not in OF_THE_HOUSE] == []


def test_types_are_known_but_at_the_edge_of_untyped_libraries() -> None:
    uses = {file: sum(is_any(node) for node in ast.walk(tree(file))) for file in SOURCES}
    most_used = sorted(((n, file) for file, n in uses.items() if n), reverse=True)
    assert sum(uses.values()) < MAXIMUM_ANY, most_used


def is_any(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "Any"


@pytest.mark.parametrize("file", SOURCES)
def test_docstrings_start_with_a_noun_or_a_verb(file: str) -> None:
    wrong = [(line, text[:60]) for line, text in docstrings(file) if text.startswith(OPENINGS)]
    assert wrong == [], f"{file}: lines and beginnings of docstrings"
