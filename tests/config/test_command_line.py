"""The command line: words into a config, help, and `--print-config`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from avvp_dist.config import (
    DecontaminateConfig,
    ImportConfig,
    InspectConfig,
    PretrainConfig,
    ScoreConfig,
    SimulateConfig,
)
from avvp_dist.config.command_line import parse, parse_training
from avvp_dist.config.files import load
from avvp_dist.errors import ConfigError

PRETRAIN = ["data.shards=some/folder", "trainer.out=some/folder"]


def test_keys_may_be_given_as_options() -> None:
    given = ["--shards", "A", "--against", "llp", "similarity=0.9", "--against=s3://b/x, y.csv"]
    config = parse(DecontaminateConfig, "", [*given, "--tracking.enabled", "false"])
    assert (config.shards, config.similarity, config.tracking.enabled) == ("A", 0.9, False)
    assert config.against == ["llp", "s3://b/x, y.csv"]
    assert parse(DecontaminateConfig, "", ["shards=A", "--against", "[]"]).against == []
    assert parse(DecontaminateConfig, "", ["shards=A", "--against", "[x,y]"]).against == ["x", "y"]
    with pytest.raises(ConfigError, match="unrecognized arguments: --shard"):
        parse(DecontaminateConfig, "", ["shards=A", "--shard", "B"])


def test_of_several_files_the_last_word_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("trainer: {epochs: 5, seed: 6}\ndata: {hidden_streams: [motion]}\n")
    second.write_text("trainer: {seed: 7, batch_size: 8}\ndata: {hidden_streams: []}\n")
    words = ["--config", str(first), *PRETRAIN, "--config", str(second)]
    made = parse(PretrainConfig, "x", words)
    assert (made.trainer.epochs, made.trainer.seed, made.trainer.batch_size) == (5, 7, 8)
    assert made.data.hidden_streams == []
    words = ["--config", str(second), *PRETRAIN, "--config", str(first)]
    made = parse(PretrainConfig, "x", [*words, "trainer.epochs=9"])
    assert (made.trainer.epochs, made.trainer.seed, made.trainer.batch_size) == (9, 6, 8)
    assert made.data.hidden_streams == ["motion"]


def test_parse_takes_file_and_overrides_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("out: here\ntrain: 5\n")
    expected = SimulateConfig(out="here", train=5, val=7)
    assert parse(SimulateConfig, "x", ["--config", str(file), "val=7"]) == expected
    assert parse(SimulateConfig, "x", ["val=7", f"--config={file}"]) == expected
    # The deepspeed launcher puts this in front of what the user typed.
    launched = ["--local_rank=0", "--config", str(file), "val=7"]
    assert parse(SimulateConfig, "x", launched) == expected


def test_a_list_takes_several_words_up_to_the_next_key() -> None:
    words = ["--predictions", "p.npz", "q.npz", "--annotations", "csvs", "--predictions", "r.npz"]
    config = parse(ScoreConfig, "", [*words, "--audio-annotations", "2020"])
    assert config.predictions == ["p.npz", "q.npz", "r.npz"]
    assert (config.annotations, config.audio_annotations) == ("csvs", "2020")
    words = ["--predictions", "p.npz", "q.npz", "annotations=csvs"]
    assert parse(ScoreConfig, "", words).predictions == ["p.npz", "q.npz"]


def test_a_switch_needs_no_value() -> None:
    words = ["--format", "han", "file.pt", "--out", "DIR"]
    config = parse(ImportConfig, "", [*words, "--no-skip", "--gcaa-first-snippet"])
    assert (config.file, config.skip, config.gcaa_first_snippet) == ("file.pt", False, True)
    config = parse(ImportConfig, "", [*words, "--skip", "false", "gcaa_first_snippet=true"])
    assert (config.file, config.skip, config.gcaa_first_snippet) == ("file.pt", False, True)


@pytest.mark.parametrize("place", ["DIR", "s3://bucket/x", "/data/day=1/set", "a b"])
def test_a_bare_word_is_the_positional_key(place: str) -> None:
    for words in ([place, "--deep"], ["--deep", place], ["verify=size", place, "deep=true"]):
        config = parse(InspectConfig, "", words)
        assert (config.shards, config.deep) == (place, True)
    with pytest.raises(ConfigError, match="unknown key deap, did you mean deep"):
        parse(InspectConfig, "", [place, "deap=true"])
    with pytest.raises(ConfigError, match="one shards is expected, not 2"):
        parse(InspectConfig, "", [place, "other"])


def test_a_dry_run_plans_for_the_ranks_it_is_told(monkeypatch: Any) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for words, ranks in (
        ([], 0),
        (["--dry-run"], 1),
        (["--dry-run", "--ranks", "8"], 8),
    ):
        assert parse_training(PretrainConfig, "", [*PRETRAIN, *words])[1] == ranks
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert parse_training(PretrainConfig, "", [*PRETRAIN, "--dry-run"])[1] == 4
    for words in (["--ranks", "2"], ["--dry-run", "--ranks", "0"]):
        with pytest.raises(ConfigError, match="--ranks"):
            parse_training(PretrainConfig, "", [*PRETRAIN, *words])


def test_the_printed_config_reads_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [*PRETRAIN, "--config", "pretrain/released", "trainer.epochs=3"]
    with pytest.raises(SystemExit) as ended:
        parse(PretrainConfig, "x", [*words, "--print-config"])
    assert ended.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert load(PretrainConfig, tmp_path / "printed.yaml") == parse(PretrainConfig, "x", words)


def test_help_says_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(InspectConfig, "Look at a set.", ["--help"], prog="avvp inspect")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: avvp inspect [--config FILE]")
    assert "Look at a set." in text
    assert re.search(r"^  shards: str, required\n      folder or URL", text, re.MULTILINE)
    assert re.search(r"^  verify: sha256\|size, default 'sha256'\n", text, re.MULTILINE)


def test_parsing_says_for_how_many_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["data.shards=a", "trainer.out=b"]
    monkeypatch.setenv("WORLD_SIZE", "4")
    for words, ranks in (([], 0), (["--dry-run"], 4), (["--ranks", "64", "--dry-run"], 64)):
        assert parse_training(PretrainConfig, "x", [*given, *words])[1] == ranks
    for words in (["--ranks", "2"], ["--dry-run", "--ranks", "0"]):
        with pytest.raises(ConfigError, match="--ranks"):
            parse_training(PretrainConfig, "x", [*given, *words])
