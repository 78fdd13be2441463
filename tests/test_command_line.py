"""Configs: what the command line accepts, what it refuses and how, and what it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from avvp_dist import config as configs
from avvp_dist.command_line import load, parse, to_yaml
from avvp_dist.config import (
    CalibrateConfig,
    DemoConfig,
    EvaluateConfig,
    FinetuneConfig,
    GroundConfig,
    PackConfig,
    PretrainConfig,
    SimulateConfig,
)
from avvp_dist.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]

REQUIRED: dict[Any, list[str]] = {
    SimulateConfig: ["out"],
    PackConfig: ["source", "out"],
    CalibrateConfig: ["shards"],
    GroundConfig: ["shards"],
    PretrainConfig: ["data.shards", "trainer.out"],
    FinetuneConfig: ["data.train", "data.val", "data.annotations", "trainer.out"],
    EvaluateConfig: ["parser", "shards", "annotations", "out"],
    DemoConfig: [],
}
"""The keys that each stage cannot guess."""

KINDS = pytest.mark.parametrize("kind", REQUIRED, ids=lambda kind: kind.__name__)
STAGE_FILES = sorted(ROOT.glob("configs/*/*.yaml"))
ENTRY_POINTS = {
    path.relative_to(ROOT).as_posix(): getattr(configs, found[1])
    for path in sorted([*ROOT.glob("launch/*.py"), *ROOT.glob("tools/*.py")])
    if (found := re.search(r"\bparse\((\w+), __doc__\)", path.read_text()))
}

LIGHT = """
import runpy, sys
# None stands for "cannot be imported": whoever tries gets a traceback and exit status 1.
sys.modules.update(dict.fromkeys(["torch", "deepspeed", "ray", "mlflow", "faiss"]))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def given(kind: Any) -> list[str]:
    """Overrides that give each required key a value."""
    return [f"{key}=some/folder" for key in REQUIRED[kind]]


def dotted(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def fault(kind: Any, overrides: list[str], file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(kind, file, [*given(kind), *overrides])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def start(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """An entry point in a process that can import nothing heavy."""
    command = [sys.executable, "-c", LIGHT, script, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@KINDS
def test_a_missing_required_key_is_named(kind: Any) -> None:
    if not REQUIRED[kind]:
        assert load(kind, None) == kind()
        return
    with pytest.raises(ConfigError) as caught:
        load(kind, None)
    assert re.findall(r"([\w.]+) must be given", str(caught.value)) == REQUIRED[kind]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.epoch=3", "unknown key trainer.epoch, did you mean trainer.epochs?"),
        ("trainer=3", "unknown key trainer, did you mean trainer."),
        ("trainer.epochs=many", "trainer.epochs=many: "),
        ("trainer.epochs=1.5", "trainer.epochs=1.5: "),
        ("tracking.enabled=perhaps", "tracking.enabled=perhaps: "),
        ("trainer.epochs=null", "command line: trainer.epochs="),
        ("objective.name=mutli", "objective.name=mutli is not one of uni, cross, multi, did you "),
        ("trainer.epochs=0", "trainer.epochs=0 is below 1"),
        ("data.heldout=0.6", "data.heldout=0.6 is above 0.5"),
        ("--resume", "--resume: overrides are KEY=VALUE"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    assert message in fault(PretrainConfig, [override])


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train=[1", "train"),
        ("train=???", "train"),
        ("noise=nan", "noise"),
        ("noise=inf", "noise"),
        ("out=${nowhere}", "out"),
    ],
)
def test_a_value_that_cannot_be_is_named(override: str, key: str) -> None:
    assert re.search(rf"\b{key}=", fault(SimulateConfig, [override]))


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("optimizer: {rate: 0.1}\ntrainer: {epochs: many, zero_stage: 4}\n")
    with pytest.raises(ConfigError) as caught:
        load(PretrainConfig, file, ["encoder.size=huge", "objektive.name=uni", "fast"])
    for part in (
        f"{file}: unknown key optimizer.rate",
        f"{file}: trainer.epochs=many",
        "trainer.zero_stage=4 is above 3",
        "encoder.size=huge is not one of",
        "unknown key objektive.name, did you mean objective.name?",
        "fast: overrides are KEY=VALUE",
        "data.shards must be given",
        "trainer.out must be given",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [1\n", "line 2"),
        ("train: 1\ntrain: 2\n", "duplicate key train"),
        ("- train\n", "unknown key"),
        ("train:\n", "train=None"),
        ("train: ???\n", "train=???"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    told = fault(SimulateConfig, [], file)
    assert message in told
    assert str(file) in told


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        assert f"--config: {path}" in fault(SimulateConfig, [], path)


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("out: here\ntrain: 5\nval: 6\n")
    made = load(SimulateConfig, file, ["val=7", "val=8"])
    assert made == SimulateConfig(out="here", train=5, val=8)


def test_values_take_the_type_of_their_key() -> None:
    made = load(
        PretrainConfig,
        None,
        [*given(PretrainConfig), "optimizer.lr=1e-3", "tracking.enabled=false", "trainer.seed=7"],
    )
    assert (made.optimizer.lr, made.tracking.enabled, made.trainer.seed) == (0.001, False, 7)
    streams = load(CalibrateConfig, None, ["shards=a", "streams=[audio]"]).streams
    assert streams == ["audio"]


@pytest.mark.parametrize("text", ["2024_01_02", "007", "1e5", "yes", "-b_0_10", "a=b", "a b", ""])
def test_text_stays_as_it_was_typed(text: str) -> None:
    made = load(PackConfig, None, [*given(PackConfig), f"extractor={text}"])
    assert made.extractor == text


@pytest.mark.parametrize(
    "text", ["2024_01_02", "007", "1e5", "yes", "null", "a: b", " x ", "#", ""]
)
def test_text_survives_yaml(tmp_path: Path, text: str) -> None:
    made = PackConfig(source="a", out="b", extractor=text)
    (tmp_path / "text.yaml").write_text(to_yaml(made))
    assert load(PackConfig, tmp_path / "text.yaml") == made


@KINDS
def test_yaml_reads_back_as_the_same_config(kind: Any, tmp_path: Path) -> None:
    made = load(kind, None, given(kind))
    (tmp_path / "all.yaml").write_text(to_yaml(made))
    assert load(kind, tmp_path / "all.yaml") == made


@KINDS
def test_every_misspelt_key_is_told_its_name(kind: Any) -> None:
    keys = list(dotted(asdict(kind())))
    told = fault(kind, [f"{key}x=1" for key in keys])
    for key in keys:
        assert f"unknown key {key}x, did you mean {key}?" in told


def test_parse_takes_file_and_overrides_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("out: here\ntrain: 5\n")
    expected = SimulateConfig(out="here", train=5, val=7)
    assert parse(SimulateConfig, "x", ["--config", str(file), "val=7"]) == expected
    assert parse(SimulateConfig, "x", ["val=7", f"--config={file}"]) == expected
    # The deepspeed launcher puts this in front of what the user typed.
    launched = ["--local_rank=0", "--config", str(file), "val=7"]
    assert parse(SimulateConfig, "x", launched) == expected


@pytest.mark.parametrize("file", STAGE_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_of_the_repository_loads(file: Path) -> None:
    kind: Any = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}[file.parent.name]
    assert load(kind, file, given(kind)) != kind()


def test_every_stage_has_an_entry_point() -> None:
    assert set(ENTRY_POINTS.values()) == set(REQUIRED)
    assert {file.parent.name for file in STAGE_FILES} == {"pretrain", "finetune"}


@pytest.mark.parametrize("script", ENTRY_POINTS)
def test_help_names_every_key(script: str) -> None:
    ended = start(script, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    kind = ENTRY_POINTS[script]
    for key in dotted(asdict(kind())):
        (row,) = [n for n, line in enumerate(lines) if line.startswith(f"  {key}: ")]
        assert ("required" in lines[row]) == (key in REQUIRED[kind])
        assert re.match(r" {6}\S", lines[row + 1]), f"{key} has no line of help"


@pytest.mark.parametrize("script", ENTRY_POINTS)
def test_print_config_reads_back(script: str, tmp_path: Path) -> None:
    kind = ENTRY_POINTS[script]
    ended = start(script, "--print-config", *given(kind))
    assert (ended.returncode, ended.stderr) == (0, "")
    (tmp_path / "printed.yaml").write_text(ended.stdout)
    assert load(kind, tmp_path / "printed.yaml") == load(kind, None, given(kind))


@pytest.mark.parametrize("script", ENTRY_POINTS)
def test_a_config_error_is_one_line_and_status_2(script: str) -> None:
    ended = start(script, "nonsense=1", "--config", "nowhere.yaml")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(r"error: .*nowhere\.yaml.*unknown key nonsense.*\n", ended.stderr)
