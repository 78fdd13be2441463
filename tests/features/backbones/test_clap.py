"""CLAP's audio network with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avvp_dist.features.backbones.clap import Clap
from tests.features.backbones.conftest import sounds
from tests.features.backbones.random_weights import check_rows, give, random_state, settle


def test_seconds_of_sound_are_described(
    transformers: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any
) -> None:
    state = random_state(
        lambda: transformers.ClapAudioModelWithProjection(transformers.ClapAudioConfig())
    )
    state["text_model.embeddings.weight"] = torch.ones(2)
    backbone = Clap(give(monkeypatch, Clap, state, tmp_path / "pytorch_model.bin"))
    assert capfd.readouterr().err == ""  # no bar, no report of weights that are not needed
    settle(backbone)
    rows = sounds(backbone.rate)
    found = check_rows(backbone.features, rows[[0, 2]], 2, 512)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)
    ten = backbone._extractor(np.tile(rows[0], 10), sampling_rate=48000)["input_features"][0]
    assert np.array_equal(
        backbone._extractor(rows[0], sampling_rate=48000)["input_features"][0], ten
    )
