"""The demo's chain: its commands are the ones a user would type, and their configs are valid."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from avvp_dist import demo
from avvp_dist.config import DemoConfig, FinetuneConfig, PretrainConfig
from avvp_dist.config.command_line import parse
from avvp_dist.demo import ROWS, command_line, demo_job
from avvp_dist.errors import AvvpError, ConfigError
from avvp_dist.reproduction.jobs import run_missing
from avvp_dist.stages import STAGES


def test_what_is_shown_is_what_is_run(tmp_path: Path) -> None:
    keys = DemoConfig(
        seeds=2, finetune=["trainer.epochs=3"], pretrain=["trainer.epochs=4", "encoder.size=base"]
    )
    commands = demo_job(keys, tmp_path).commands
    assert len(commands) == 8 + 2 * 2 * len(ROWS)
    trained = [c.config for c in commands if isinstance(c.config, PretrainConfig | FinetuneConfig)]
    assert [config.trainer.epochs for config in trained] == [4, *[3] * 2 * len(ROWS)]
    for command in commands:
        words = command_line(command, ranks=2)
        kind = STAGES[command.stage].config
        assert kind is not None
        launcher = ["deepspeed", "--num_accelerators"] if STAGES[command.stage].plan else ["avvp"]
        assert words[: len(launcher)] == launcher
        assert parse(kind, "", words[words.index(command.stage) + 1 :]) == command.config


def test_every_command_has_a_record_and_an_output_of_its_own(tmp_path: Path) -> None:
    commands = demo_job(DemoConfig(seeds=2), tmp_path).commands
    assert len({command.name for command in commands}) == len(commands)
    assert len({command.out for command in commands}) == len(commands)
    assert all(command.out.is_relative_to(tmp_path) for command in commands)


def test_rows_may_be_chosen(tmp_path: Path) -> None:
    commands = demo_job(DemoConfig(rows=["pretrain_multi"] * 2), tmp_path).commands
    names = ["finetune + encoder (multi), seed 1", "evaluate + encoder (multi), seed 1"]
    assert [command.name for command in commands][8:] == names


def test_real_features_are_not_simulated(tmp_path: Path) -> None:
    commands = demo_job(DemoConfig(features=str(tmp_path / "mine")), tmp_path).commands
    assert not [command for command in commands if command.stage == "simulate"]
    (pack,) = (command for command in commands if command.name == "pack val")
    assert f"source={tmp_path / 'mine'}" in pack.words
    with pytest.raises(ConfigError, match=r"features: .*mine does not exist"):
        demo.demo(DemoConfig(features=str(tmp_path / "mine")))


def test_videos_are_extracted_and_parsed(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for split, clip in (("val", "other_0_10"), ("test", "clip_0_10")):
        rows = f"filename\tevent_labels\n{clip}\tDog\n"
        (folder / f"AVVP_{split}_pd.csv").write_text(rows)
    for modality in ("audio", "visual"):
        rows = "filename\tonset\toffset\tevent_labels\nclip_0_10\t2\t4\tDog\n"
        (folder / f"AVVP_eval_{modality}.csv").write_text(rows)
    (folder / "clip_0_10.mp4").write_bytes(b"")
    commands = demo_job(DemoConfig(videos=str(folder)), tmp_path).commands
    stages = [command.stage for command in commands]
    assert stages[:3] == ["extract"] * 3 and stages[-1] == "parse-video"
    assert "simulate" not in stages and "pack" not in stages
    assert f"videos=[{folder}/clip_0_10.mp4]" in commands[-1].words
    with pytest.raises(ConfigError, match="features and videos are both given"):
        demo.demo(DemoConfig(videos=str(folder), features=str(folder)))


def test_a_command_that_fails_ends_the_demo_with_its_code_and_is_run_again(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_started", lambda words: ["false"])
    job = demo_job(DemoConfig(), tmp_path)
    job = replace(job, commands=job.commands[:2])
    for _ in range(2):
        with pytest.raises(AvvpError, match="stage simulate ended with exit code 1") as error:
            run_missing(job, lambda command: demo._execute(command, 2))
        assert error.value.exit_code == 1 and job.finished == 0
    monkeypatch.setattr(demo, "_started", lambda words: ["true"])
    run_missing(job, lambda command: demo._execute(command, 2))
    assert job.is_finished
    records = [json.loads(path.read_text()) for path in (tmp_path / "ledger").iterdir()]
    assert sorted(record["made_from"] for record in records) == sorted(job.keys)
    assert f"$ avvp simulate out={tmp_path}/features" in capsys.readouterr().out
