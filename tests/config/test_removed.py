"""Keys of earlier versions: their error names the key that stands in their place."""

from __future__ import annotations

import pytest

from avvp_dist.config.files import load
from avvp_dist.config.option import keys_of
from avvp_dist.config.removed import REMOVED, RENAMED, replacement
from avvp_dist.errors import ConfigError
from avvp_dist.stages import STAGES

KINDS = [stage.config for stage in STAGES.values() if stage.config]


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_key_is_told_its_new_name(old: str) -> None:
    kinds = [kind for kind in KINDS if RENAMED[old] in {key.name for key in keys_of(kind)}]
    assert kinds
    for kind in kinds:
        with pytest.raises(ConfigError, match=rf"command line: {old} is now {RENAMED[old]}"):
            load(kind, None, [f"{old}=1"])


def test_a_removed_key_is_told_why() -> None:
    for old, why in REMOVED.items():
        assert replacement(old, []) == f"{old} was removed: {why}"


def test_a_key_renamed_in_another_stage_is_only_unknown() -> None:
    assert replacement("trainer.recompute", ["shards"]) == ""
    assert replacement("trainer.epoch", ["trainer.epochs"]) == ""
