"""Autocast: layers that multiply in bfloat16 over float32 weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[object]:
    """Context in which torch casts the factors of matrix products to bfloat16.

    Nothing is cast on the meta device, which torch's autocast does not know.
    """
    if not enabled or device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
