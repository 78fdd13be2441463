"""Keys of scores and of import: flags, and rules that several stages share."""

from __future__ import annotations

import pytest

from avvp_dist.config import EvaluateConfig, ImportConfig, ScoreConfig, StudyConfig, TablesConfig
from avvp_dist.config.command_line import parse
from avvp_dist.config.option import keys_of
from avvp_dist.errors import ConfigError


@pytest.mark.parametrize("key", ["rule", "audio_annotations"])
def test_whatever_scores_has_the_same_choices_and_default(key: str) -> None:
    kinds = (EvaluateConfig, ScoreConfig, StudyConfig, TablesConfig)
    found = [one for kind in kinds for one in keys_of(kind) if one.name == key]
    assert len(found) == len(kinds)
    assert len({(one.option.choices, one.default) for one in found}) == 1


def test_a_threshold_may_be_a_number_or_a_file() -> None:
    words = ["--predictions", "p.npz", "--annotations", "csvs", "--threshold"]
    assert parse(ScoreConfig, "", [*words, "0.50"]).threshold == "0.50"
    assert parse(ScoreConfig, "", [*words, "limits.npy"]).threshold == "limits.npy"


def test_import_needs_file_format_and_folder() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(ImportConfig, "", [])
    assert str(caught.value).count(" must be given: ") == 3
    with pytest.raises(ConfigError, match="format=ham is not one of han, cross_modal"):
        parse(ImportConfig, "", ["f.pt", "--format", "ham", "--out", "x"])
