"""Files of random weights for real architectures, small however large the network is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avvp_dist.commit import sha256
from avvp_dist.features.backbones.weights import Weights

_POOL = 1 << 16


def random_state(build: Callable[[], torch.nn.Module], prefix: str = "") -> dict[str, torch.Tensor]:
    """Weights of a network that is never built: views of a few random numbers.

    They are scaled as He et al. do, so that activations neither vanish nor overflow.
    """
    with torch.device("meta"):
        wanted = build().state_dict()
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(0))
    scaled: dict[float, torch.Tensor] = {}
    state = {}
    for name, like in wanted.items():
        if not like.is_floating_point() or "running" in name or like.dim() < 2:
            value = 0.0 if name.endswith(("bias", "running_mean")) else 1.0
            state[prefix + name] = torch.full(like.shape, value, dtype=like.dtype)
            continue
        scale = (2 / max(1, like[0].numel())) ** 0.5
        view = scaled.setdefault(scale, pool * scale)
        state[prefix + name] = view.as_strided(like.shape, _strides(like.shape))
    return state


def _strides(shape: torch.Size) -> list[int]:
    """Strides within the pool: rows overlap, but none equals another one."""
    row = shape[1:].numel()
    inner = torch.empty(shape[1:], device="meta").stride() if row < _POOL // 2 else None
    strides = list(inner) if inner is not None else [1] * (len(shape) - 1)
    used = sum((n - 1) * s for n, s in zip(shape[1:], strides, strict=True))
    return [max(1, (_POOL - 1 - used) // max(1, shape[0] - 1)), *strides]


def give(
    monkeypatch: pytest.MonkeyPatch, kind: Any, content: Any, file: Path, **changes: Any
) -> dict[str, str]:
    """Save weights and let a backbone expect them; returns `weights.NAME=FILE`."""
    if file.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: one.contiguous() for name, one in content.items()}, file)
    else:
        torch.save(content, file)
    known = replace(kind.weights, sha256=sha256(file), package="", **changes)
    monkeypatch.setattr(kind, "weights", known)
    return {kind.name: str(file)}


def settle(backbone: Any) -> None:
    """Give each row of the weights memory of its own, without which products are slow."""
    for one in backbone._network.parameters():
        one.data = one.data.contiguous()


def check_rows(
    features: Callable[[Any], np.ndarray], rows: Any, count: int, dim: int
) -> np.ndarray:
    """Assert shape and type of features, and that rows differ and do not depend on their batch."""
    found = features(rows)
    assert found.shape == (count, dim) and found.dtype == np.float32
    assert np.isfinite(found).all() and not np.allclose(found[0], found[-1], rtol=1e-3)
    each = len(rows) // count
    alone = [features(rows[n * each : (n + 1) * each]) for n in range(count)]
    scale = np.abs(found).max()
    assert np.allclose(np.concatenate(alone), found, rtol=1e-4, atol=1e-5 * scale)
    return found


def known(weights: Weights) -> bool:
    """Whether a hash is one, whole or its first eight digits."""
    return len(weights.sha256) in (8, 64) and int(weights.sha256, 16) >= 0
