"""Files and overrides: what is merged, what is refused and how, and what is found by name."""

from __future__ import annotations

import math
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avvp_dist.config import CalibrateConfig, PackConfig, PretrainConfig, SimulateConfig
from avvp_dist.config.files import load, packaged_configs, read_config, to_yaml
from avvp_dist.config.option import keys_of
from avvp_dist.errors import ConfigError
from avvp_dist.stages import STAGES

KINDS = pytest.mark.parametrize(
    "kind", [stage.config for stage in STAGES.values() if stage.config], ids=lambda k: k.__name__
)


def required_of(kind: Any) -> list[str]:
    """Overrides that give each required key a value."""
    values = {"format": "han"}
    return [
        f"{key.name}={values.get(key.name, 'some/folder')}"
        for key in keys_of(kind)
        if key.option.required
    ]


def fault(kind: Any, overrides: list[str], file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(kind, file, [*required_of(kind), *overrides])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@KINDS
def test_a_missing_required_key_is_named(kind: Any) -> None:
    required = [key.name for key in keys_of(kind) if key.option.required]
    if not required:
        assert load(kind, None) == kind()
        return
    with pytest.raises(ConfigError) as caught:
        load(kind, None)
    assert re.findall(r"([\w.]+) must be given", str(caught.value)) == required


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
        ("trainer.epochs=-1", "trainer.epochs=-1 is below 0"),
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
        [
            *required_of(PretrainConfig),
            "optimizer.lr=1e-3",
            "tracking.enabled=false",
            "trainer.seed=7",
        ],
    )
    assert (made.optimizer.lr, made.tracking.enabled, made.trainer.seed) == (0.001, False, 7)
    streams = load(CalibrateConfig, None, ["shards=a", "streams=[audio]"]).streams
    assert streams == ["audio"]


def test_a_list_of_one_needs_no_brackets(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {shards: one}\n")
    made = load(PretrainConfig, tmp_path / "a.yaml", ["trainer.out=o", "data.grounding=g"])
    assert (made.data.shards, made.data.grounding, made.data.weights) == (["one"], ["g"], [])
    with pytest.raises(ConfigError, match=r"data\.weights=\['x'\]"):
        load(PretrainConfig, None, [*required_of(PretrainConfig), "data.weights=x"])


SCALARS = [
    *("2026_8_6", "0012", "1e3", "no", "on", "y", "2026-08-06", "2026-08-06 10:11:12", "0x1F"),
    *("1_000", "0o17", "12:30:00", ".5", "-1", "1.0", "True", ".inf", ".nan", "=", "5 "),
]
"""Text that YAML takes for numbers, dates and truth values."""


@pytest.mark.parametrize("text", SCALARS)
def test_text_in_a_file_is_text(tmp_path: Path, text: str) -> None:
    file, text = tmp_path / "some.yaml", text.strip()
    file.write_text(
        f"data:\n  shards: [{text}, a]\n  grounding:\n  - {text}\ntrainer: {{out: {text}}}"
    )
    made = load(PretrainConfig, file)
    assert (made.data.shards, made.data.grounding, made.trainer.out) == ([text, "a"], [text], text)
    made = load(PretrainConfig, None, [f"data.shards=[{text},a]", f"trainer.out={text}"])
    assert (made.data.shards, made.trainer.out) == ([text, "a"], text)


def test_numbers_in_a_file_take_the_type_of_their_key(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(
        "data: {shards: a, weights: [1, 2.5, 1e-1]}\ntracking: {enabled: no}\n"
        "trainer: {out: b, epochs: 7, batch_size: 1_024}\noptimizer: {lr: 1e-3}\n"
    )
    made = load(PretrainConfig, file)
    assert made.data.weights == [1.0, 2.5, 0.1] and made.tracking.enabled is False
    assert (made.trainer.epochs, made.trainer.batch_size, made.optimizer.lr) == (7, 1024, 0.001)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "some.yaml").write_text("data: {shards: [~/a, b~c]}\ntrainer: {out: ~/run}\n")
    made = load(PretrainConfig, tmp_path / "some.yaml", ["data.grounding=[~/g]"])
    assert (made.data.shards, made.data.grounding) == ([f"{tmp_path}/a", "b~c"], [f"{tmp_path}/g"])
    assert made.trainer.out == f"{tmp_path}/run"
    assert "trainer.out=~nobody-here/a: " in fault(PretrainConfig, ["trainer.out=~nobody-here/a"])


@pytest.mark.parametrize("text", ["2024_01_02", "007", "1e5", "yes", "-b_0_10", "a=b", "a b", ""])
def test_text_stays_as_it_was_typed(text: str) -> None:
    made = load(PackConfig, None, [*required_of(PackConfig), f"extractor={text}"])
    assert made.extractor == text


@pytest.mark.parametrize(
    "text", ["2024_01_02", "007", "1e5", "yes", "null", "a: b", " x ", "#", ""]
)
def test_text_survives_yaml(tmp_path: Path, text: str) -> None:
    made = PackConfig(source="a", out="b", extractor=text)
    (tmp_path / "text.yaml").write_text(to_yaml(made))
    assert load(PackConfig, tmp_path / "text.yaml") == made


TEXT = st.text(st.characters(exclude_categories=["Cs"])).filter(
    lambda text: "${" not in text and text != "???" and not text.startswith("~")
)
"""Any text but OmegaConf's own words and a home folder, which are replaced."""


@settings(deadline=None)
@given(TEXT, st.lists(TEXT, max_size=3))
@example("[x]", ["[x]"])
@example("{a: b}", ["a, b"])
@example("null", ["null", "a\nb"])
def test_any_text_comes_out_as_it_went_in(text: str, several: list[str]) -> None:
    """From the command line, from a file, and from the YAML that a run writes."""
    words = [f"source={text}", f"out={text}", f"annotations={text}", f"extractor={text}"]
    if text:
        made = load(PackConfig, None, words)
        assert {made.source, made.out, made.annotations, made.extractor} == {text}
    listed = yaml.safe_dump(several, default_flow_style=True, width=math.inf)
    keys = ["trainer.out=o", f"data.shards={listed}", "data.grounding=g"]
    if several and all(several):
        assert load(PretrainConfig, None, keys).data.shards == several
    with TemporaryDirectory() as folder:
        file = Path(folder, "some.yaml")
        file.write_text(yaml.safe_dump({"source": "a", "out": "b", "extractor": text}))
        from_file = load(PackConfig, file)
        file.write_text(to_yaml(from_file))
        assert load(PackConfig, file) == from_file
    assert from_file.extractor == text


@KINDS
def test_yaml_reads_back_as_the_same_config(kind: Any, tmp_path: Path) -> None:
    made = load(kind, None, required_of(kind))
    (tmp_path / "all.yaml").write_text(to_yaml(made))
    assert load(kind, tmp_path / "all.yaml") == made


@KINDS
def test_every_misspelt_key_is_told_its_name(kind: Any) -> None:
    keys = [key.name for key in keys_of(kind)]
    told = fault(kind, [f"{key}x=1" for key in keys])
    for key in keys:
        assert f"unknown key {key}x, did you mean {key}?" in told


def test_a_packaged_config_is_found_by_its_name(
    root: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    names = packaged_configs()
    assert {name.partition("/")[0] for name in names} == {"pretrain", "finetune"}
    for name in names:
        assert read_config(name) == (root / "configs" / f"{name}.yaml").read_text()
    assert "zero_optimization" in read_config("deepspeed/large_buckets", ".json")


def test_a_file_counts_more_than_a_packaged_config_of_its_name(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pretrain").mkdir()
    Path("pretrain/multi").write_text("trainer: {epochs: 3}\n")
    assert load(PretrainConfig, "pretrain/multi", required_of(PretrainConfig)).trainer.epochs == 3


@pytest.mark.parametrize(
    "name", ["pretrain/mutli", "pretrain/mutli.yaml", "configs/pretrain/mutli"]
)
def test_an_unknown_name_lists_near_ones(name: str) -> None:
    assert f"--config: {name} does not exist, did you mean pretrain/multi" in fault(
        PretrainConfig, [], Path(name)
    )
