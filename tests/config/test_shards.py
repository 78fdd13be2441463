"""Keys of shard sets: the limits of their formats, and inherited keys."""

from __future__ import annotations

import pytest

from avvp_dist.config import InspectConfig, LoaderConfig, PackConfig, ReadConfig
from avvp_dist.config.files import load
from avvp_dist.config.option import keys_of
from avvp_dist.errors import ConfigError


def test_component_ids_of_a_byte_limit_the_snippets() -> None:
    given = ["source=a", "out=b"]
    assert load(PackConfig, None, [*given, "snippets=254"]).snippets == 254
    with pytest.raises(ConfigError, match="snippets=255 is above 254"):
        load(PackConfig, None, [*given, "snippets=255"])


def test_no_clip_is_left_out_unless_asked_for() -> None:
    for kind in (PackConfig, LoaderConfig):
        (key,) = [key for key in keys_of(kind) if key.name == "max_bad_fraction"]
        assert key.default == 0.0
        assert list(key.faults(1.01)) == ["max_bad_fraction=1.01 is above 1"]


@pytest.mark.parametrize("kind", [LoaderConfig, InspectConfig])
def test_whoever_reads_shards_has_the_keys_of_reading_last(kind: type) -> None:
    inherited = [key.name for key in keys_of(ReadConfig)]
    assert [key.name for key in keys_of(kind)][-len(inherited) :] == inherited
