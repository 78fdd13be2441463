"""Precision of a training: which numbers are stored, which are multiplied, and by whose doing.

| `trainer.precision` | ZeRO | weights, gradients, AdamW | matrix products of the layers |
|---|---|---|---|
| fp32 | any | float32 | float32 |
| tf32 | any | float32 | TF32, on devices that have it |
| bf16 | 0 | float32 | bfloat16, by torch's autocast |
| bf16 | 1 to 3 | bfloat16, AdamW's own copy float32 | bfloat16, by DeepSpeed |

Without ZeRO, DeepSpeed's bf16 updates one parameter after the other. Autocast keeps the fused
update, sums gradients in float32, and exports what was trained. Under ZeRO, weights in bfloat16
halve the messages between the ranks.
"""

from __future__ import annotations

import torch

from avvp_dist.config import TrainerConfig


def stores_bf16(trainer: TrainerConfig) -> bool:
    """Whether DeepSpeed trains in bfloat16, beside AdamW's float32 weights."""
    return trainer.precision == "bf16" and trainer.zero_stage > 0


def stored_precision(trainer: TrainerConfig) -> str:
    """Name of the precision of the weights in a checkpoint, bf16 or fp32."""
    return "bf16" if stores_bf16(trainer) else "fp32"


def autocasts(trainer: TrainerConfig) -> bool:
    """Whether the layers multiply in bfloat16 although weights are float32."""
    return trainer.precision == "bf16" and trainer.zero_stage == 0


def model_dtype(trainer: TrainerConfig) -> torch.dtype:
    """Data type of the weights and of the features that enter the model."""
    return torch.bfloat16 if stores_bf16(trainer) else torch.float32


def product_dtype(trainer: TrainerConfig) -> torch.dtype:
    """Data type of the factors in the matrix products of the layers."""
    return torch.bfloat16 if trainer.precision == "bf16" else torch.float32


def set_product_precision(trainer: TrainerConfig) -> None:
    """Choose how this process multiplies float32 matrices.

    Beside layers in bf16, TF32 is precise enough for what is compared in float32.
    """
    torch.set_float32_matmul_precision("highest" if trainer.precision == "fp32" else "high")
