"""Keys of grounding: rules, groupings, and the ranges of similarities."""

from __future__ import annotations

import pytest

from avvp_dist.config import CalibrateConfig, DecontaminateConfig, GroundConfig
from avvp_dist.config.files import load
from avvp_dist.config.grounding import GROUPINGS
from avvp_dist.config.option import keys_of
from avvp_dist.errors import ConfigError


def test_controls_are_groupings_too() -> None:
    (grouping,) = [key for key in keys_of(GroundConfig) if key.name == "grouping"]
    assert set(grouping.option.choices) - set(GROUPINGS) == {"clip", "snippet"}


def test_calibration_and_grounding_link_by_the_same_keys() -> None:
    calibrated, grounded = (
        load(kind, None, ["shards=a", "rule=and", "grouping=average-link", "silent_energy=0.5"])
        for kind in (CalibrateConfig, GroundConfig)
    )
    for key in ("rule", "grouping", "silent_energy", "undirected", "neighbours"):
        assert getattr(calibrated, key) == getattr(grounded, key)


@pytest.mark.parametrize(
    ("kind", "override", "fault"),
    [
        (GroundConfig, "silent_similarity=1.5", "is above 1"),
        (CalibrateConfig, "false_link_rate=-0.1", "is below 0"),
        (CalibrateConfig, "clips=1", "is below 2"),
        (DecontaminateConfig, "similarity=0", "is below 0.01"),
        (
            CalibrateConfig,
            "target=one-clip",
            "is not one of false-links, components, one-component",
        ),
    ],
)
def test_values_that_select_nothing_are_refused(kind: type, override: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        load(kind, None, ["shards=a", override])
