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
from omegaconf import OmegaConf

from avvp_dist import config as configs
from avvp_dist.config import (
    CalibrateConfig,
    DecontaminateConfig,
    DemoConfig,
    EvaluateConfig,
    FinetuneConfig,
    GroundConfig,
    PackConfig,
    PretrainConfig,
    PromoteConfig,
    RefineConfig,
    SimulateConfig,
    StudyConfig,
    TablesConfig,
)
from avvp_dist.config.command_line import load, parse, to_yaml
from avvp_dist.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

REQUIRED: dict[Any, list[str]] = {
    SimulateConfig: ["out"],
    PackConfig: ["source", "out"],
    CalibrateConfig: ["shards"],
    GroundConfig: ["shards"],
    DecontaminateConfig: ["shards"],
    PretrainConfig: ["data.shards", "trainer.out"],
    FinetuneConfig: ["data.train", "data.val", "data.annotations", "trainer.out"],
    EvaluateConfig: ["parser", "shards", "annotations", "out"],
    RefineConfig: ["parser", "shards", "out"],
    StudyConfig: ["shards", "annotations"],
    TablesConfig: ["shards", "annotations"],
    DemoConfig: [],
    PromoteConfig: ["model"],
}
"""The keys that each stage cannot guess."""

KINDS = pytest.mark.parametrize("kind", REQUIRED, ids=lambda kind: kind.__name__)
STAGE_FILES = sorted(ROOT.glob("configs/*/*.yaml"))
FILES = pytest.mark.parametrize(
    "file", STAGE_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}"
)
ENTRY_POINTS = {
    path.relative_to(ROOT).as_posix(): getattr(configs, found[1])
    for path in sorted([*ROOT.glob("launch/*.py"), *ROOT.glob("tools/*.py")])
    if (found := re.search(r"\bparse\w*\((\w+), __doc__\)", path.read_text()))
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


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a config as a dict, dotted, with its value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def dotted(tree: dict[str, Any]) -> Iterator[str]:
    return (key for key, _ in leaves(tree))


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


def test_keys_may_be_given_as_options() -> None:
    given = ["--shards", "A", "--against", "llp", "similarity=0.9", "--against=s3://b/x, y.csv"]
    config = parse(DecontaminateConfig, "", [*given, "--tracking.enabled", "false"])
    assert (config.shards, config.similarity, config.tracking.enabled) == ("A", 0.9, False)
    assert config.against == ["llp", "s3://b/x, y.csv"]
    assert parse(DecontaminateConfig, "", ["shards=A", "--against", "[]"]).against == []
    assert parse(DecontaminateConfig, "", ["shards=A", "--against", "[x,y]"]).against == ["x", "y"]
    with pytest.raises(SystemExit):
        parse(DecontaminateConfig, "", ["shards=A", "--shard", "B"])


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


def test_of_several_files_the_last_word_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("trainer: {epochs: 5, seed: 6}\ndata: {hidden_streams: [motion]}\n")
    second.write_text("trainer: {seed: 7, batch_size: 8}\ndata: {hidden_streams: []}\n")
    words = ["--config", str(first), *given(PretrainConfig), "--config", str(second)]
    made = parse(PretrainConfig, "x", words)
    assert (made.trainer.epochs, made.trainer.seed, made.trainer.batch_size) == (5, 7, 8)
    assert made.data.hidden_streams == []
    words = ["--config", str(second), *given(PretrainConfig), "--config", str(first)]
    made = parse(PretrainConfig, "x", [*words, "trainer.epochs=9"])
    assert (made.trainer.epochs, made.trainer.seed, made.trainer.batch_size) == (9, 6, 8)
    assert made.data.hidden_streams == ["motion"]


def test_of_several_files_the_wrong_one_is_named(tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.yaml" for name in ("first", "second", "third"))
    first.write_text("val: many\n")
    second.write_text("trian: 5\n")
    with pytest.raises(ConfigError) as caught:
        load(SimulateConfig, [first, second, third], ["out=here"])
    told = str(caught.value).split("; ")
    assert told[0].startswith(f"{first}: val=many: ")
    assert told[1] == f"{second}: unknown key trian, did you mean train?"
    assert told[2].startswith(f"--config: {third} does not exist")


def test_values_take_the_type_of_their_key() -> None:
    made = load(
        PretrainConfig,
        None,
        [*given(PretrainConfig), "optimizer.lr=1e-3", "tracking.enabled=false", "trainer.seed=7"],
    )
    assert (made.optimizer.lr, made.tracking.enabled, made.trainer.seed) == (0.001, False, 7)
    streams = load(CalibrateConfig, None, ["shards=a", "streams=[audio]"]).streams
    assert streams == ["audio"]


def test_a_list_of_one_needs_no_brackets(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {shards: one}\n")
    made = load(PretrainConfig, tmp_path / "a.yaml", ["trainer.out=o", "data.grounding=g"])
    assert (made.data.shards, made.data.grounding, made.data.weights) == (["one"], ["g"], [])
    with pytest.raises(ConfigError, match=r"data\.weights=\['x'\]"):
        load(PretrainConfig, None, [*given(PretrainConfig), "data.weights=x"])


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


def kind_of(file: Path) -> Any:
    return {"pretrain": PretrainConfig, "finetune": FinetuneConfig}[file.parent.name]


def printed(capsys: pytest.CaptureFixture[str], folder: Path, *files: Path) -> Any:
    """What `--print-config` prints of `files` together, read back."""
    kind = kind_of(files[0])
    arguments = [word for file in files for word in ("--config", str(file))]
    with pytest.raises(SystemExit) as ended:
        parse(kind, "x", [*arguments, "--print-config", *given(kind)])
    assert ended.value.code == 0
    (folder / "printed.yaml").write_text(capsys.readouterr().out)
    return load(kind, folder / "printed.yaml")


def read(file: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(file))


def assert_all_said(made: Any, *files: Path) -> None:
    """Every key of the files has its value, the last one if several give it."""
    found: dict[str, Any] = dict(leaves(asdict(made)))
    said: dict[str, Any] = {}
    for file in files:
        said |= leaves(read(file))
    assert said
    assert {key: found[key] for key in said} == said


@FILES
def test_every_config_of_the_repository_loads(
    file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert_all_said(printed(capsys, tmp_path, file), file)


@FILES
def test_every_config_can_be_what_the_authors_released(
    file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = "released_mmil.yaml" if file.stem.endswith("_mmil") else "released.yaml"
    released = file.with_name(name)
    assert_all_said(printed(capsys, tmp_path, file, released), file, released)


def test_ma_is_han_on_refined_labels(root: Path) -> None:
    ma, base, han = (
        load(FinetuneConfig, root / "configs" / "finetune" / name, given(FinetuneConfig))
        for name in ("ma.yaml", "ma_contrastive.yaml", "han.yaml")
    )
    assert ma.parser == han.parser
    assert (ma.trainer.epochs, ma.trainer.export) == (12, "last")
    # Every loss has weight 1, and both stages train alike but for their labels.
    assert (ma.loss.lambda_guided, ma.loss.lambda_contrastive) == (1.0, 1.0)
    assert asdict(ma) == asdict(base)


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
