"""Networks with weights, and batches of bounded size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from avvp_dist.errors import ConfigError
from avvp_dist.features.backbones.networks import (
    IMAGENET,
    in_batches,
    network_with,
    normalised,
    read_weights,
)


def test_a_network_gets_its_weights_and_ignores_others() -> None:
    state = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2), "b.weight": torch.ones(1)}
    network = network_with(lambda: nn.Linear(3, 2), state, "net", "a.")
    assert network(torch.ones(1, 3)).tolist() == [[3.0, 3.0]] and not network.training
    with pytest.raises(ConfigError, match=r"weights.net lack c\.weight and 1 more"):
        network_with(lambda: nn.Linear(3, 2), state, "net", "c.")


def test_batches_are_bounded_and_in_order() -> None:
    sizes = []

    def run(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return part * 2

    assert in_batches(run, torch.arange(7.0), 3).tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert sizes == [3, 3, 1]


def test_pictures_are_normalised_channel_by_channel() -> None:
    pictures = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    pictures[..., 0] = 255
    red, green, blue = normalised(pictures, IMAGENET)[0, :, 0, 0].tolist()
    assert (red, green, blue) == pytest.approx((2.2489, -2.0357, -1.8044), abs=1e-4)


@pytest.mark.parametrize("old", [False, True])
def test_arrays_of_both_numpys_are_read_and_code_is_not(old: bool, tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    arrays = {"x": np.arange(3.0), "y": np.int64(4)}
    torch.save(arrays, file, _use_new_zipfile_serialization=not old)
    if old:  # the name that NumPy 1 wrote
        file.write_bytes(file.read_bytes().replace(b"numpy._core.", b"numpy.core."))
    found = read_weights(file)
    assert found["x"].tolist() == [0, 1, 2] and found["y"] == 4
    torch.save({"x": print}, file)
    with pytest.raises(Exception, match="Weights only load failed"):
        read_weights(file)
