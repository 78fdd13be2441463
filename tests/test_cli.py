"""The command `avvp`: it answers at once, names every stage, and ends as documented."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avvp_dist import __version__
from avvp_dist.stages import STAGES

HEAVY = ("torch", "deepspeed", "ray", "mlflow", "faiss", "numpy", "matplotlib", "psutil")

EVERY_HELP = """
import contextlib, io, runpy, sys
# None stands for "cannot be imported": whoever tries gets a traceback and exit status 1.
sys.modules.update(dict.fromkeys({heavy!r}))
from avvp_dist.cli import main
def said(run):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            run()
        except SystemExit as ended:
            assert not ended.code, ended.code
    return text.getvalue()
for name in {names!r}:
    text = said(lambda: main([name, "--help"]))
    assert text.startswith(f"usage: avvp {{name}} "), text
    print(name, text.count(chr(10)))
for script, name in {scripts!r}.items():
    sys.argv = [script, "--help"]
    text = said(lambda: runpy.run_path(script, run_name="__main__"))
    assert text == said(lambda: main([name, "--help"])), script
"""


def avvp(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "avvp_dist", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_overview_has_one_line_for_each_stage() -> None:
    said = avvp("--help")
    assert (said.returncode, said.stderr) == (0, "")
    rows = re.findall(r"^  (\S+)  +(\S.*)$", said.stdout, re.MULTILINE)
    assert rows == [(stage.name, stage.help) for stage in STAGES.values()]
    assert avvp().stdout == said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 100


def test_the_overview_comes_at_once_and_imports_nothing_heavy() -> None:
    best = 9.0
    for _ in range(3):
        started = time.monotonic()
        avvp("--help")
        best = min(best, time.monotonic() - started)
    assert best < 2, "0.2 s on an idle machine"
    program = (
        "import sys; from avvp_dist.cli import main; main(['--help']);"
        f"print(*sys.modules.keys() & {{*{(*HEAVY, 'omegaconf', 'yaml')!r}}}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "\n")


def test_every_stage_and_every_script_has_the_same_help(root: Path) -> None:
    scripts = {
        str(path): re.findall(r'run_stage\("(.+)"\)', path.read_text())[0]
        for path in [*root.glob("tools/*.py"), *root.glob("launch/*.py")]
    }
    light = [name for name in STAGES if name != "supervise"]  # which needs psutil
    scripts = {path: name for path, name in scripts.items() if name in light}
    program = EVERY_HELP.format(heavy=HEAVY, names=light, scripts=scripts)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == light


def test_the_version_is_the_packages() -> None:
    assert avvp("--version").stdout == f"avvp {__version__}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["pak"], "unknown stage pak, did you mean pack? avvp --help lists the stages"),
        (["pack", "--deep"], "unrecognized arguments: --deep. --help lists the keys"),
        (
            ["pack", "sorce=a", "source=b", "out=c"],
            "command line: unknown key sorce, did you mean ",
        ),
        (["pretrain", "--config", "nowhere.yaml"], "--config: nowhere.yaml does not exist; "),
        (["inspect"], "shards must be given: folder or URL of the shard set. --help lists"),
    ],
)
def test_a_wrong_word_is_one_line_and_status_2(words: list[str], line: str) -> None:
    ended = avvp(*words)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {line}") and ended.stderr.count("\n") == 1


def test_the_launchers_own_option_may_stand_before_the_stage() -> None:
    """`deepspeed --module avvp_dist STAGE` puts it there."""
    words = ("pretrain", "--config", "pretrain/multi", "data.shards=a", "trainer.out=b")
    plain = avvp(*words, "--print-config")
    assert plain.returncode == 0 and "name: multi" in plain.stdout
    assert avvp("--local_rank=1", *words, "--print-config").stdout == plain.stdout


def test_supervise_ends_as_its_command_does() -> None:
    assert avvp("supervise", sys.executable, "-c", "raise SystemExit(4)").returncode == 4
    assert "--grace SECONDS" in avvp("supervise", "--help").stdout
