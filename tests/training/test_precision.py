"""Precision: who casts what, at each stage."""

from __future__ import annotations

import pytest
import torch

from avvp_dist.config import TrainerConfig
from avvp_dist.training.precision import (
    autocasts,
    model_dtype,
    product_dtype,
    set_product_precision,
    stored_precision,
    stores_bf16,
)


def test_bf16_is_autocast_without_zero_and_deepspeeds_with_it() -> None:
    plain, zero = (TrainerConfig("x", precision="bf16", zero_stage=stage) for stage in (0, 1))
    assert autocasts(plain) and not stores_bf16(plain)
    assert stores_bf16(zero) and not autocasts(zero)
    assert (model_dtype(plain), model_dtype(zero)) == (torch.float32, torch.bfloat16)
    assert product_dtype(plain) == product_dtype(zero) == torch.bfloat16
    assert (stored_precision(plain), stored_precision(zero)) == ("fp32", "bf16")


@pytest.mark.parametrize(
    ("precision", "products"), [("fp32", "highest"), ("tf32", "high"), ("bf16", "high")]
)
def test_float32_products_are_exact_only_if_asked(precision: str, products: str) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        set_product_precision(TrainerConfig("x", precision=precision))
        assert torch.get_float32_matmul_precision() == products
    finally:
        torch.set_float32_matmul_precision(before)
    assert not autocasts(TrainerConfig("x", precision="tf32"))
