"""The demo's chain: its commands are the ones a user would type, and what is done stays done."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from avvp_dist import config as configs
from avvp_dist.config import DemoConfig
from avvp_dist.config.files import load
from avvp_dist.demo import ROWS, Command, _run, stages
from avvp_dist.errors import AvvpError

KINDS = {
    "simulate.py": configs.SimulateConfig,
    "pack.py": configs.PackConfig,
    "decontaminate.py": configs.DecontaminateConfig,
    "calibrate.py": configs.CalibrateConfig,
    "ground.py": configs.GroundConfig,
    "pretrain.py": configs.PretrainConfig,
    "finetune.py": configs.FinetuneConfig,
    "evaluate.py": configs.EvaluateConfig,
}


def test_every_command_is_a_valid_one(root: Path, tmp_path: Path) -> None:
    chain = stages(DemoConfig(seeds=2), tmp_path)
    assert len(chain) == 8 + 2 * 2 * len(ROWS)
    for stage in chain:
        (script,) = (word for word in stage.command if word.endswith(".py"))
        words = stage.command[stage.command.index(script) + 1 :]
        file = None
        if words[0] == "--config":
            file, words = root / words[1], words[2:]
        load(KINDS[Path(script).name], file, words)
        assert (root / script).is_file()


def test_real_features_are_not_simulated(tmp_path: Path) -> None:
    chain = stages(DemoConfig(features=str(tmp_path / "mine")), tmp_path)
    assert not [stage for stage in chain if stage.name == "simulate"]
    (pack,) = (stage for stage in chain if stage.name == "pack val")
    assert f"source={tmp_path / 'mine'}" in pack.command


def test_a_stage_runs_once_again_when_changed_and_after_a_failure(tmp_path: Path) -> None:
    made = tmp_path / "made"

    def stage(code: str) -> Command:
        return Command("count", [sys.executable, "-c", code], made, 1)

    count = f"import pathlib; p = pathlib.Path({str(made)!r}); p.open('a').write('x')"
    key = _run(stage(count), tmp_path, "")
    assert _run(stage(count), tmp_path, "") == key
    assert made.read_text() == "x"
    _run(stage(count + "; pass"), tmp_path, "")
    assert made.read_text() == "x", "a changed command begins anew"
    _run(stage(count + "; pass"), tmp_path, "another stage before it")
    assert made.read_text() == "x", "and so does one whose input was made anew"
    failing = stage(count + "; raise SystemExit(3)")
    for _ in range(2):
        with pytest.raises(AvvpError) as error:
            _run(failing, tmp_path, "")
        assert error.value.exit_code == 3
    assert made.read_text() == "xx", "a failed one goes on where it was"
    assert json.loads((tmp_path / "stages.json").read_text())["count"]["done"] is False
