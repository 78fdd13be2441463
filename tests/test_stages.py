"""The table of stages: every entry can be run, and is what the scripts of a checkout run."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest

from avvp_dist.config.command_line import parse
from avvp_dist.config.option import keys_of
from avvp_dist.stages import STAGES, Stage, resolve

EACH = pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)


@EACH
def test_the_function_takes_the_config(stage: Stage) -> None:
    (parameter,) = inspect.signature(resolve(stage.function)).parameters.values()
    kind = stage.config.__name__ if stage.config else "Sequence[str]"
    assert parameter.annotation == kind
    if stage.plan:
        planned, ranks = inspect.signature(resolve(stage.plan)).parameters.values()
        assert (planned.annotation, ranks.annotation) == (kind, "int")


@EACH
def test_the_example_is_a_command_line_of_the_stage(stage: Stage) -> None:
    words = shlex.split(stage.example)
    assert words[0] == ("deepspeed" if stage.plan else "avvp")
    arguments = words[words.index(stage.name) + 1 :]
    if stage.config is None:
        assert arguments
        return
    config = parse(stage.config, "", arguments)
    assert isinstance(config, stage.config)


def test_scripts_of_a_checkout_run_the_stages(root: Path) -> None:
    scripts = [*root.glob("tools/*.py"), *root.glob("launch/*.py")]
    named = {path.name: re.findall(r'run_stage\("(.+)"\)', path.read_text()) for path in scripts}
    assert sorted(name for names in named.values() for name in names) == sorted(STAGES)
    for path in scripts:
        assert path.read_text().startswith(f'"""`avvp {named[path.name][0]}` in a checkout."""')


def test_a_stage_that_trains_is_started_by_a_launcher(root: Path) -> None:
    for stage in STAGES.values():
        trains = stage.config is not None and any(
            key.name == "trainer.out" for key in keys_of(stage.config)
        )
        assert bool(stage.plan) == trains
