"""The commit protocol: a file or folder under its final name is whole, whatever happens."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from avvp_dist.commit import (
    MANIFEST,
    HashingFile,
    commit_folder,
    described,
    digest,
    sha256,
    staged,
    verify_folder,
    write_json,
)


def test_a_file_is_hashed_while_it_is_written(tmp_path: Path) -> None:
    path, given_up = tmp_path / "file", threading.Event()
    with HashingFile(path, given_up) as file:
        file.write(b"half ")
        file.write(memoryview(b"and half"))
        assert file.finish() == described(tmp_path, [path])["file"]
    with HashingFile(path, given_up) as file:
        given_up.set()
        with pytest.raises(OSError, match=f"canceled.*{path}"):
            file.write(b"more")
    assert path.read_bytes() == b""


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from avvp_dist.commit import staged
with staged(Path(sys.argv[1])) as temporary, temporary.open("w") as file:
    file.write("half of the new te")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""

KILLED_WHILE_COMMITTING = """
import os, signal, sys
from pathlib import Path
from avvp_dist.commit import commit_folder
calls = 0
def dying(call):
    def step(*arguments, **options):
        global calls
        calls += 1
        if calls == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return step
for name in ("replace", "rename", "unlink", "rmdir", "fsync"):
    setattr(os, name, dying(getattr(os, name)))
commit_folder(Path(sys.argv[1]), Path(sys.argv[2]), {"step": 2})
"""


def start(program: str, *arguments: object) -> int:
    """Run a program; its exit status, negative for the signal that killed it."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=False).returncode


def filled(folder: Path, text: str) -> Path:
    """A folder of two files, one of them in a folder of its own."""
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text(text)
    (folder / "sub" / "b.bin").write_bytes(text.encode() * 1000)
    return folder


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    final = tmp_path / "final"
    commit_folder(filled(tmp_path / "temporary", "old"), final, {"step": 1})
    return final


def test_staged_appears_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with staged(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged(tmp_path / "file.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_an_exception_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), staged(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, "old"])
def test_a_killed_writer_leaves_no_half_file(tmp_path: Path, old: str | None) -> None:
    path = tmp_path / "file.txt"
    if old:
        path.write_text(old)
    assert start(KILLED_WHILE_WRITING, path) == -signal.SIGKILL
    assert (path.read_text() if path.exists() else None) == old


def test_json_that_cannot_be_written_keeps_the_old(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    write_json(path, {"a": [1, None, "ü"]})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, None, "ü"]}


def test_the_manifest_tells_sizes_and_digests(committed: Path) -> None:
    manifest = json.loads((committed / MANIFEST).read_text())
    assert manifest["step"] == 1
    assert manifest["files"] == {
        name: {"bytes": (committed / name).stat().st_size, "sha256": sha256(committed / name)}
        for name in ("a.txt", "sub/b.bin")
    }
    assert verify_folder(committed) == []


def test_a_commit_replaces_the_older_folder(committed: Path, tmp_path: Path) -> None:
    (committed / "stale.txt").write_text("from another time")
    commit_folder(filled(tmp_path / "temporary", "new"), committed, {"step": 2})
    assert verify_folder(committed) == []
    assert (committed / "a.txt").read_text() == "new"
    assert not (committed / "stale.txt").exists()
    assert list(tmp_path.iterdir()) == [committed]


def test_a_killed_commit_leaves_a_whole_folder_or_none(tmp_path: Path) -> None:
    for call in range(1, 40):
        folder = tmp_path / str(call)
        temporary, final = filled(folder / "temporary", "new"), folder / "final"
        commit_folder(filled(folder / "older", "old"), final, {"step": 1})
        status = start(KILLED_WHILE_COMMITTING, temporary, final, call)
        assert not final.exists() or verify_folder(final) == [], f"killed at call {call}"
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert call > 8  # it was killed at every step on the way
    assert (final / "a.txt").read_text() == "new"


def _remove(file: Path) -> None:
    file.unlink()


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["a.txt", "sub/b.bin"])
@pytest.mark.parametrize(
    ("harm", "message"),
    [(_remove, "is missing"), (_truncate, "bytes, not"), (_flip, "SHA-256")],
)
def test_a_damaged_file_is_named(
    committed: Path, name: str, harm: Callable[[Path], None], message: str
) -> None:
    harm(committed / name)
    (line,) = verify_folder(committed)
    assert line.startswith(str(committed / name))
    assert message in line


def test_every_damaged_file_is_named(committed: Path) -> None:
    _remove(committed / "a.txt")
    _flip(committed / "sub" / "b.bin")
    assert [line.split()[0] for line in verify_folder(committed)] == [
        str(committed / "a.txt"),
        str(committed / "sub" / "b.bin"),
    ]


def test_without_a_manifest_nothing_is_done(committed: Path) -> None:
    _remove(committed / MANIFEST)
    assert verify_folder(committed) == [f"{committed / MANIFEST} is missing"]


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{", b"\xff\xfe", b"{}", b"[]", b"null", b'{"files": []}', b'{"files": {"a.txt": 1}}'],
)
def test_a_garbage_manifest_is_named(committed: Path, garbage: bytes) -> None:
    (committed / MANIFEST).write_bytes(garbage)
    (line,) = verify_folder(committed)
    assert line == f"{committed / MANIFEST} is not a manifest"


def test_equal_values_have_equal_digests() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
