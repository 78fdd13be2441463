"""Keys of MLflow: which stages have them, and what sync and promote need."""

from __future__ import annotations

import pytest

from avvp_dist.config import PromoteConfig, SyncConfig
from avvp_dist.config.command_line import parse
from avvp_dist.config.option import keys_of
from avvp_dist.errors import ConfigError
from avvp_dist.stages import STAGES


def test_stages_that_make_something_are_tracked() -> None:
    tracked = {
        name
        for name, stage in STAGES.items()
        if stage.config and "tracking.enabled" in [key.name for key in keys_of(stage.config)]
    }
    silent = {"simulate", "inspect", "score", "import", "promote", "sync", "supervise", "demo"}
    assert tracked == set(STAGES) - silent


def test_sync_takes_folders_as_they_are_typed() -> None:
    assert parse(SyncConfig, "", ["runs/a", "runs/b"]).runs == ["runs/a", "runs/b"]
    assert parse(SyncConfig, "", ["runs=runs/a"]).runs == ["runs/a"]
    with pytest.raises(ConfigError, match="runs must be given: output folders of runs"):
        parse(SyncConfig, "", [])


def test_promote_cannot_guess_the_model() -> None:
    with pytest.raises(ConfigError, match="model must be given"):
        parse(PromoteConfig, "", ["version=2"])
    with pytest.raises(ConfigError, match=r"margin=-1\.0 is below 0"):
        parse(PromoteConfig, "", ["model=avvp-parser", "margin=-1"])
