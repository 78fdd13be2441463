"""VGGish with random weights in the layout of torchvggish."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avvp_dist.commit import sha256
from avvp_dist.features.backbones import vggish
from avvp_dist.features.backbones.vggish import Vggish, VggishAudioset, quantised, restored
from avvp_dist.features.backbones.weights import Weights
from avvp_dist.features.logmel import log_mel
from tests.features.backbones.conftest import sounds
from tests.features.backbones.random_weights import check_rows, give, random_state, settle

CONVOLUTIONS, LINEAR = (0, 3, 6, 8, 11, 13), (0, 2, 4)
POOLED = (0, 3, 8, 13)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return random_state(vggish._Network)


def by_hand(state: dict[str, torch.Tensor], sound: np.ndarray) -> np.ndarray:
    """The network layer by layer, as its paper has it: configuration A of VGG, four groups."""
    x = torch.from_numpy(log_mel(sound, 0.01))[:, None]
    for number in CONVOLUTIONS:
        name = f"features.{number}"
        x = F.relu(F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1))
        x = F.max_pool2d(x, 2) if number in POOLED else x
    x = x.permute(0, 2, 3, 1).reshape(len(x), -1)
    for number in LINEAR:
        name = f"embeddings.{number}"
        x = F.relu(x) if number else x
        x = F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
    return x.numpy()


def test_the_raw_features(
    state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = {name: tuple(one.shape) for name, one in state.items() if name.endswith("weight")}
    assert sizes["features.0.weight"] == (64, 1, 3, 3)
    assert sizes["features.13.weight"] == (512, 512, 3, 3)
    assert sizes["embeddings.0.weight"] == (4096, 512 * 6 * 4)
    assert sizes["embeddings.4.weight"] == (128, 4096)
    backbone = Vggish(give(monkeypatch, Vggish, state, tmp_path / "net.pth"))
    settle(backbone)
    rows = sounds(backbone.rate)
    found = check_rows(backbone.features, rows, 3, 128)
    raw = by_hand(state, rows)
    assert (raw < 0).any() and np.allclose(found, np.maximum(raw, 0), rtol=1e-3, atol=1e-4)
    changed = rows.copy()
    changed[:, 15600:] = 0.5
    assert np.array_equal(backbone.features(changed), found)


def test_the_features_of_audioset(
    state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    directions, means = rng.normal(size=(128, 128)) / 10, rng.normal(size=(128, 1))
    file = tmp_path / "pca.pth"
    torch.save({"pca_eigen_vectors": directions, "pca_means": means}, file)
    more = (("vggish-pca", Weights(sha256(file), "https://x/pca.pth")),)
    given = give(monkeypatch, VggishAudioset, state, tmp_path / "net.pth", more=more)
    backbone = VggishAudioset({**given, "vggish-pca": str(file)})
    settle(backbone)
    rows = sounds(backbone.rate)
    raw = by_hand(state, rows)
    expected = [[(one - means[:, 0]) @ d for d in directions] for one in raw]
    assert np.abs(backbone.features(rows) - np.clip(expected, -2, 2)).max() < 4 / 255


def test_levels_are_those_of_audioset() -> None:
    """Cut off, as `uint8` was made; the half step of YouTube-8M's rule makes up for it."""
    values = np.array([-9, -2, -1.9999, -2 + 4.1 / 255, 0, 1.99, 2, 9])
    assert quantised(values).tolist() == [0, 0, 0, 1, 127, 254, 255, 255]
    assert restored(np.array([0, 255], np.uint8)).tolist() == pytest.approx(
        [-1.9922, 2.0078], abs=1e-4
    )
    many = np.random.default_rng(0).uniform(-2, 2, 100_000)
    assert abs((restored(quantised(many)) - many).mean()) < 1e-3


@pytest.mark.shared
def test_features_of_han_have_passed_a_relu(shared: Path) -> None:
    silent = np.load(shared / "llp" / "silent_vggish.npy")
    assert silent.min() == 0 and (silent == 0).mean() > 0.5
