"""Running an entry point: what a process says and returns when it meets an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from avvp_dist.errors import AvvpError, Preempted

FAIL = """
from avvp_dist import entry, errors
def main():
    print("so far")
    raise errors.{name}("shard 3 is missing", remedy="Copy it again")
entry.run(main)
"""

CONNECTED = """
import sys
from types import SimpleNamespace
sys.modules["torch"] = SimpleNamespace(distributed=SimpleNamespace(is_initialized=lambda: True))
"""


def start(program: str, rank: int | None = None) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "RANK"}
    if rank is not None:
        env["RANK"] = str(rank)
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", AvvpError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_run_says_one_line_and_ends_with_the_code(kind: type[AvvpError]) -> None:
    ended = start(FAIL.format(name=kind.__name__))
    assert ended.returncode == kind.exit_code
    word = "preempted" if kind is Preempted else "error"
    assert ended.stderr == f"{word}: shard 3 is missing. Copy it again\n"
    assert ended.stdout == "so far\n"  # what was printed before is not lost


def test_other_ranks_are_silent_before_they_are_connected() -> None:
    impatient = "import time\ntime.sleep = lambda seconds: None\n"  # rank 0 speaks meanwhile
    ended = start(impatient + FAIL.format(name="DataError"), rank=1)
    assert (ended.returncode, ended.stderr) == (3, "")


def test_connected_ranks_say_who_they_are() -> None:
    ended = start(CONNECTED + FAIL.format(name="DataError"), rank=1)
    assert ended.returncode == 3
    assert ended.stderr == "error on rank 1: shard 3 is missing. Copy it again\n"


def test_success_ends_with_0() -> None:
    ended = start("from avvp_dist.entry import run\nrun(lambda: print('done'))")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_a_mistake_in_the_code_keeps_its_traceback() -> None:
    ended = start("from avvp_dist.entry import run\nrun(lambda: 1 / 0)")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "ZeroDivisionError" in ended.stderr


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("open('/proc/nothing', 'w')", 2, "error: /proc/nothing: No such file or directory"),
        ("raise KeyboardInterrupt", 130, "interrupted: run the command again"),
        ("raise OSError('a bug')", 1, "OSError: a bug"),
    ],
)
def test_files_and_interrupts_end_with_one_line(program: str, code: int, said: str) -> None:
    source = f"from avvp_dist.entry import run\ndef main():\n    {program}\nrun(main)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == code
    assert said in done.stderr
    assert ("Traceback" in done.stderr) == (code == 1)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("torch.distributed.DistError('NCCL: remote process exited')", 5),
        ("RuntimeError('[gloo/transport/tcp/pair.cc:553] Connection closed by peer')", 5),
        ("BrokenPipeError(32, 'Broken pipe')", 5),  # what a launcher that died leaves behind
        ("RuntimeError('mat1 and mat2 shapes cannot be multiplied')", 1),
    ],
)
def test_a_lost_peer_is_an_error_of_the_cluster(error: str, code: int) -> None:
    """On another host nobody sees how it ended; its code 1 would look like a bug here."""
    program = f"""{CONNECTED}
from avvp_dist import entry
torch = sys.modules["torch"]
torch.distributed.is_available = lambda: True
torch.distributed.DistError = type("DistError", (RuntimeError,), {{}})
def main():
    raise {error}
entry.run(main)
"""
    done = start(program, rank=1)
    assert done.returncode == code
    assert ("error on rank 1: " in done.stderr) == (code == 5)
    assert ("Traceback" in done.stderr) == (code == 1)


DRAW = """
import os, sys
from avvp_dist.entry import run
def main():
    from avvp_dist.evaluation.figures import curves_figure
    curves_figure(sys.argv[1], {"a": ([1, 2], [3, 4])}, [("a", ["a"], "y")], "x", "t")
run(main)
"""


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", "module://none.such", "nbagg", "x"]
)
def test_figures_need_no_backend_of_a_notebook(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    command = [sys.executable, "-c", DRAW, str(path)]
    env = {**os.environ, "MPLBACKEND": backend}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert path.read_bytes().startswith(b"\x89PNG")


HOME = """
import os
from pathlib import Path
os.getuid = lambda: 12345  # a user without a name
from avvp_dist.entry import run
from avvp_dist.runtime.environment import home
def main():
    import mlflow.environment_variables, matplotlib.pyplot
    print(Path.home(), home())
run(main)
"""


@pytest.mark.parametrize("named", [None, "/dev/null", "/no/such/folder", "/proc"])
def test_libraries_are_imported_without_a_home(named: str | None) -> None:
    kept = {key: value for key, value in os.environ.items() if key != "HOME"}
    env = kept if named is None else {**kept, "HOME": named}
    command = [sys.executable, "-c", HOME]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == (
        ["/proc", "/proc"] if named == "/proc" else ["/dev/null", "None"]
    )


PRINT = """
import sys
from avvp_dist.entry import run
def main():
    for line in range(int(sys.argv[1])):
        print(line)
run(main)
"""


@pytest.mark.parametrize("lines", [5, 100_000])
def test_output_that_nobody_reads_is_no_error(lines: int) -> None:
    command = [sys.executable, "-c", PRINT, str(lines)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # as `head` does
        assert process.stderr.read() == b""
    assert process.returncode in ((0, 141) if lines == 5 else (141,))


NAMES = r"""
from pathlib import Path
from avvp_dist.entry import run
def main():
    print("\N{LATIN SMALL LETTER SHARP S}")
    Path("/tmp/\N{LATIN SMALL LETTER SHARP S}").read_text()
run(main)
"""


def test_a_name_that_the_locale_lacks_is_one_line() -> None:
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", NAMES]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "\\xdf\n")
    assert ended.stderr == (
        "error: '/tmp/\\xdf' is no text in ascii, the encoding of this locale. Set PYTHONUTF8=1\n"
    )
