"""Interface of every backbone, which callers rely on."""

from __future__ import annotations

from avvp_dist.features.backbones.backbone import package_missing
from avvp_dist.features.backbones.registry import BACKBONES, backbone_class
from tests.features.backbones.random_weights import known


def test_each_backbone_says_what_it_is_before_it_is_loaded() -> None:
    for name in BACKBONES:
        kind = backbone_class(name)
        reads = "picture" if hasattr(kind, "picture") else "sound"
        assert kind.name == name
        assert kind.stream in {"picture": ("visual", "motion"), "sound": ("audio",)}[reads]
        assert 0 < kind.dim <= 2048 and 0 < kind.rate <= 48000
        assert known(kind.weights) and all(known(one) for _, one in kind.weights.more)
        assert kind.weights.address.startswith("https://") and kind.weights.licence


def test_a_missing_package_is_one_line() -> None:
    error = package_missing("net", "some package", ImportError("No module\nnamed x"))
    assert str(error) == "the backbone net needs some package: No module. pip install some package"
    assert error.exit_code == 2
