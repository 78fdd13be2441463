"""Keys of sweeps: their defaults name packaged configs and rows that exist."""

from __future__ import annotations

import pytest

from avvp_dist.config import DemoConfig, StudyConfig, SweepConfig, TablesConfig
from avvp_dist.config.files import load, packaged_configs
from avvp_dist.config.option import keys_of
from avvp_dist.errors import ConfigError
from avvp_dist.reproduction.rows import ROWS


def test_default_configs_and_rows_exist() -> None:
    study = StudyConfig()
    assert {study.encoder_config, study.parser_config} <= set(packaged_configs())
    assert set(TablesConfig().compare) <= set(ROWS)


def test_the_demo_needs_no_key() -> None:
    assert load(DemoConfig, None) == DemoConfig()


@pytest.mark.parametrize("kind", [TablesConfig, StudyConfig])
def test_a_sweep_has_the_keys_of_all_sweeps(kind: type) -> None:
    keys = {key.name: key.option for key in keys_of(kind)}
    assert all(keys[key.name] == key.option for key in keys_of(SweepConfig))


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("rules=[or,xor]", "rules=xor is not one of or, and"),
        ("groupings=[clip]", "groupings=clip is not one of components, mutual-knn, average-link"),
        ("objectives=[multi,duo]", "objectives=duo is not one of uni, cross, multi"),
        ("false_link_rates=[2]", r"false_link_rates=2\.0 is above 1"),
    ],
)
def test_every_value_of_a_grid_is_checked(override: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        load(StudyConfig, None, ["shards=a", "annotations=b", override])
