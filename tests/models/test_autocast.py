"""Autocast: products in bfloat16 where it is on, and nothing on the meta device."""

from __future__ import annotations

import pytest
import torch

from avvp_dist.models.autocast import autocast


@pytest.mark.parametrize(
    ("device", "enabled", "dtype"),
    [
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),
        ("meta", True, torch.float32),
    ],
)
def test_products_are_cast_where_it_is_on(device: str, enabled: bool, dtype: torch.dtype) -> None:
    x = torch.ones(2, 2, device=device)
    with autocast(x.device, enabled):
        assert (x @ x).dtype == dtype
    assert (x @ x).dtype == torch.float32
