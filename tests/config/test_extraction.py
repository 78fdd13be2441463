"""Keys of the extraction."""

from __future__ import annotations

import pytest

from avvp_dist.config import ExtractConfig
from avvp_dist.config.files import load
from avvp_dist.errors import ConfigError

GIVEN = ["source=a", "out=b"]


def test_t_is_the_window() -> None:
    assert load(ExtractConfig, None, [*GIVEN, "window=4"]).snippets == 4
    with pytest.raises(ConfigError, match="window=255 is above 254"):
        load(ExtractConfig, None, [*GIVEN, "window=255"])


def test_weights_are_given_by_the_name_of_their_backbone() -> None:
    made = load(ExtractConfig, None, [*GIVEN, "weights.yamnet=x.zip", "weights.vggish=y.pth"])
    assert made.weights == {"yamnet": "x.zip", "vggish": "y.pth"}


def test_words_are_those_of_the_key() -> None:
    with pytest.raises(ConfigError, match="long=all is not one of windows, first, error"):
        load(ExtractConfig, None, [*GIVEN, "long=all"])
