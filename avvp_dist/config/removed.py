"""Keys of earlier versions and their successors."""

from __future__ import annotations

from collections.abc import Collection

RENAMED = {
    "trainer.recompute": "trainer.activation_checkpointing",
    "trainer.accumulate": "trainer.gradient_accumulation",
    "optimizer.clip": "optimizer.max_grad_norm",
    "encoder.checkpoint": "pretrained.checkpoint",
    "encoder.tune": "pretrained.tune",
    "encoder.lr_scale": "pretrained.lr_scale",
    "encoder.raw": "pretrained.raw",
    "encoder.scale": "pretrained.scale",
    "one_component_share": "one_component_fraction",
}
"""Old key, new key."""

REMOVED = {
    "across": "no stage read the neighbours it stored; pretraining finds them in each batch",
}
"""Old key, and why it has no successor."""

RENAMED_METRICS = {
    "auc": "val/auc",
    "loss": "train/loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
}
"""Old metric, new metric."""


def replacement(name: str, known: Collection[str]) -> str:
    """One line about a key of an earlier version, which names its successor.

    Args:
        known: the keys of the stage; a key that was renamed in another stage is not meant.

    Returns:
        Empty for a key that was never there.
    """
    if RENAMED.get(name) in known:
        return f"{name} is now {RENAMED[name]}"
    if name in REMOVED:
        return f"{name} was removed: {REMOVED[name]}"
    return ""
