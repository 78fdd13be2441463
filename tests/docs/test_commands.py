"""Commands in README, CONTRIBUTING and docs: each is parsed by the program that would run it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from avvp_dist.config.command_line import parse, parse_training
from avvp_dist.config.option import keys_of
from avvp_dist.errors import ConfigError
from avvp_dist.runtime.devices import INSTALL
from avvp_dist.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"sh", "console", "python", "text"}
PROGRAMS = (
    "avvp",
    "deepspeed",
    "torchrun",
    "sbatch",
    "podman",
    "kubectl",
    "python",
    "make",
    "mlflow",
)
KEYS = {key.name for stage in STAGES.values() if stage.config for key in keys_of(stage.config)}

OTHER_NAMES = {"key", "allow_pickle", "weights_only"}
"""Names before an equals sign that are no keys."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return FENCE.findall(page.read_text())


def code_spans(page: Path) -> list[str]:
    """Texts between single backticks, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))


def commands(page: Path) -> Iterator[str]:
    """Command lines of the page: those of its blocks, and whole ones in its text and tables."""
    for language, text in blocks(page):
        lines = text.replace("\\\n", " ").splitlines()
        if language == "sh":
            yield from filter(None, lines)
        elif language == "console":
            yield from (line.removeprefix("$ ") for line in lines if line.startswith("$ "))
    for span in code_spans(page):
        if len(span.split()) > 1 and span.split()[0] in PROGRAMS:
            yield span


ALL = [
    pytest.param(command, id=f"{page.relative_to(ROOT)}: {command[:60]}")
    for page in PAGES
    for command in commands(page)
]


def check(words: Sequence[str]) -> None:
    """Parse a command line; raises unless its program would take it."""
    match words:
        case [launcher, *rest] if launcher.endswith("pip"):
            check_extras(rest)
        case [".venv/bin/pre-commit", *_]:
            assert (ROOT / ".pre-commit-config.yaml").is_file()
        case [".venv/bin/pytest", *rest]:
            assert all((ROOT / word).exists() for word in rest if "/" in word)
        case ["avvp", "supervise", *rest]:
            check_supervised(rest)
        case ["avvp", "--help"] | ["avvp", "STAGE", "--help"]:
            pass
        case ["avvp", stage, *rest]:
            check_stage(stage, rest)
        case ["deepspeed" | "torchrun", *_]:
            check_launched(words)
        case ["sbatch", *rest]:
            script = next(n for n, word in enumerate(rest) if not word.startswith("--"))
            check_slurm(rest[script], rest[script + 1 :])
        case ["python", "-m", module]:
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        case ["sed", _, file, "|", *rest]:
            assert (ROOT / file).is_file()
            check(rest)
        case ["python", file, *rest]:
            check_script(file, rest)
        case ["make", *rest]:
            check_make(rest)
        case ["mlflow", "models", "serve", *rest]:
            check_served(rest)
        case ["curl", address, "--json", file]:
            assert address.endswith("/invocations") and file.startswith("@")
        case ["uv", *_]:
            assert shlex.join(words) == INSTALL
        case ["printf", template, _, ">", "request.json"]:
            assert set(json.loads(template)) == {"dataframe_records"}
        case ["podman" | "kubectl", *rest]:
            files = [rest[n + 1] for n, word in enumerate(rest) if word == "-f"]
            assert all(file == "-" or (ROOT / file).is_file() for file in files)
        case _:
            raise AssertionError(f"no check for {shlex.join(words)}")


def check_stage(name: str, words: Sequence[str]) -> None:
    stage = STAGES[name]
    assert stage.config is not None
    if list(words) in ([], ["--help"]):
        return  # the stage is named, not called
    words = [word for word in words if word != "--help"]
    (parse_training if stage.plan else parse)(stage.config, stage.help, words)


def check_supervised(words: Sequence[str]) -> None:
    options = {"--grace": 1, "--pass": 1, "--env-dir": 1}
    words = list(words)
    while words and words[0] in options:
        del words[: 1 + options[words[0]]]
    if words:
        check(words)


def check_launched(words: Sequence[str]) -> None:
    """A launcher's own parser reads its options; what it would start is checked in turn."""
    if words[0] == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        given = parse_args(list(words[1:]))
        module, script, rest = given.module, given.user_script, given.user_args
    else:
        from torch.distributed.run import get_args_parser

        given = get_args_parser().parse_args(list(words[1:]))
        module, script, rest = given.module, given.training_script, given.training_script_args
    if module:
        assert script == "avvp_dist"
        check(["avvp", *rest])
    else:
        check(["python", script, *rest])


def check_served(words: Sequence[str]) -> None:
    from mlflow.models.cli import serve

    given = serve.make_context("serve", list(words)).params
    assert given["model_uri"].startswith("models:/avvp-")


def check_slurm(script: str, words: Sequence[str]) -> None:
    """The script's last use of `$@` says what it runs with the words."""
    text = (ROOT / script).read_text()
    (command,) = re.findall(r'(python [^"\n]*)"\$@"', text)
    check([*command.split(), *words])


def check_script(file: str, words: Sequence[str]) -> None:
    assert (ROOT / file).is_file(), file
    if not file.startswith("tools/bench/"):
        (stage,) = re.findall(r'run_stage\("([\w-]+)"\)', (ROOT / file).read_text())
        check_stage(stage, words)
        return
    options = (word for word in words if word.startswith("--"))
    for option in options:
        assert f'"{option}"' in (ROOT / file).read_text(), f"{file} has no {option}"


def check_make(words: Sequence[str]) -> None:
    subprocess.run(["make", "-n", *words], cwd=ROOT, check=True, capture_output=True)
    makefile = (ROOT / "Makefile").read_text()
    for variable in (word.split("=")[0] for word in words if "=" in word):
        assert f"$({variable})" in makefile, f"the Makefile reads no {variable}"


def check_extras(words: Sequence[str]) -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
        assert re.search(rf"^{extra} = \[", pyproject, re.MULTILINE), f"no extra {extra}"


@pytest.mark.parametrize("command", ALL)
def test_a_command_is_one(command: str) -> None:
    check(shlex.split(command, comments=True))


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("avvp pack source=a split=train out=b colour=red", "unknown key colour"),
        ("avvp pretrain --config pretrain/multy data.shards=a trainer.out=b", "pretrain/multi"),
        ("deepspeed --module avvp_dist pretrain data.shards=a trainer.seed=x", "trainer.seed"),
        ("sbatch --nodes=4 launch/slurm/ground.sbatch shards=a rule=xor", "rule"),
        ("avvp supervise --grace 5 torchrun launch/pretrain.py data.shards=a", "trainer.out"),
    ],
)
def test_a_fault_in_a_command_is_seen(command: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        check(shlex.split(command))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_block_escapes_these_tests(page: Path) -> None:
    assert {language for language, _ in blocks(page)} <= LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_keys_in_the_text_exist(page: Path) -> None:
    sections = {key.split(".")[0] for key in KEYS if "." in key}
    for span in code_spans(page):
        key, equals, _ = span.split()[0].partition("=")
        is_key = re.fullmatch(r"[a-z][a-z_]*(\.[a-z_]+)*", key) and key not in OTHER_NAMES
        if is_key and (equals or ("." in key and key.split(".")[0] in sections)):
            assert key in KEYS, f"`{span}` names no key"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", FENCE.sub("", page.read_text())):
        assert target.startswith("https://") or (page.parent / target).is_file(), target
