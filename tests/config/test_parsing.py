"""Keys of parsing."""

from __future__ import annotations

import pytest

from avvp_dist.config import EvaluateConfig, ParseConfig
from avvp_dist.config.command_line import parse
from avvp_dist.config.option import keys_of
from avvp_dist.errors import ConfigError

NEEDED = ["parser=a", "shards=b", "out=c"]


def test_a_page_and_data_are_the_default() -> None:
    config = parse(ParseConfig, "", NEEDED)
    assert (config.formats, config.ids, config.max_clips) == (["json", "html"], [], 0)


def test_events_are_decided_by_the_keys_of_evaluation() -> None:
    both = [{key.name: key for key in keys_of(kind)} for kind in (ParseConfig, EvaluateConfig)]
    for name in ("rule", "threshold", "parser"):
        assert both[0][name] == both[1][name]


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(ConfigError, match=r"formats=htm is not one of json, .*, did you mean html"):
        parse(ParseConfig, "", [*NEEDED, "formats=[json,htm]"])
