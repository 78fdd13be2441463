"""The wheel: built from a clean clone, installed outside the checkout, used in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from avvp_dist import __version__
from avvp_dist.stages import STAGES

EVERY_HELP = """
import contextlib, io
from avvp_dist.cli import main
for name in {names!r}:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([name, "--help"])
    print(text.getvalue().split(" [")[0])
"""


@pytest.fixture(scope="module")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel, and this environment's packages."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(["git", "clone", "-q", str(root), str(folder / "clone")], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *build, str(folder / "clone")], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    programs = folder / "venv" / "bin"
    python = str(programs / "python")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", str(wheel)], check=True)
    (packages,) = (folder / "venv").glob("lib/*/site-packages")
    # Dependencies only: of a folder that is named here no .pth is read, no editable install either.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that ends well and says nothing else."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_command_is_there_with_all_its_stages(installed: Path, tmp_path: Path) -> None:
    said = run(installed / "avvp", "--help", cwd=tmp_path)
    assert all(f"\n  {name} " in said for name in STAGES)
    assert run(installed / "avvp", "--version", cwd=tmp_path) == f"avvp {__version__}\n"
    program = EVERY_HELP.format(names=list(STAGES))
    said = run(installed / "python", "-c", program, cwd=tmp_path)
    assert said.splitlines() == [f"usage: avvp {name}" for name in STAGES]
    assert list(tmp_path.iterdir()) == []


def test_the_package_is_the_installed_one(installed: Path, tmp_path: Path) -> None:
    program = "import avvp_dist; print(avvp_dist.__file__)"
    place = run(installed / "python", "-c", program, cwd=tmp_path)
    assert Path(place).is_relative_to(installed.parent)


def test_packaged_configs_are_found_by_name(installed: Path, root: Path, tmp_path: Path) -> None:
    words = ["--config", "pretrain/multi", "data.shards=a", "trainer.out=b", "--print-config"]
    said = run(installed / "avvp", "pretrain", *words, cwd=tmp_path)
    assert "size: paper" in said and "name: multi" in said
    program = "from avvp_dist.config.files import packaged_configs; print(*packaged_configs())"
    names = run(installed / "python", "-c", program, cwd=tmp_path).split()
    files = (root / "avvp_dist" / "configs").glob("*/*.yaml")
    assert names == sorted(f"{path.parent.name}/{path.stem}" for path in files)


def test_data_of_the_package_come_with_it(installed: Path, tmp_path: Path) -> None:
    """LLP's held-out videos, and the parts of pages."""
    program = (
        "from importlib.resources import files; folder = files('avvp_dist');"
        "print((folder / 'annotations' / 'llp_heldout.npz').is_file(),"
        " (folder / 'py.typed').is_file(),"
        " *sorted(part.name for part in (folder / 'parsing/formats/assets').iterdir()))"
    )
    said = run(installed / "python", "-c", program, cwd=tmp_path)
    assert said.split() == [
        "True",
        "True",
        "document.html",
        "index.html",
        "page.html",
        "page.js",
        "style.css",
    ]
