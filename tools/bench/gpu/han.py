"""An epoch of HAN beside the official algorithm, by the bench that compares them."""

from __future__ import annotations

from collections.abc import Iterator

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.runtime.ranks import connect
from tools.bench.gpu.rows import Han, Setting
from tools.bench.han_epoch import make_clips, official_epoch, our_epoch, packed

WARM_UP = 2
"""Batches that are not timed."""


def run(setting: Setting, deadline: float) -> Iterator[Han]:
    """Train an epoch on each side, after a few batches that warm up."""
    folder = setting.folder / "han"
    csvs = make_clips(folder, setting.han_clips)
    shards, _ = packed(folder, csvs)
    ranks, annotations = connect(), read_annotations(csvs, "val")
    precisions = ("fp32", "bf16") if setting.device == "gpu" else ("fp32",)
    seconds: dict[str, float] = {}
    for limit in (WARM_UP, 0):
        seconds["official"] = official_epoch(folder, csvs, ranks.device, limit).seconds
        for precision in precisions:
            epoch = our_epoch(shards, csvs, annotations, ranks, limit, precision)
            seconds[precision] = epoch.seconds
    bf16 = seconds.get("bf16")
    yield Han(
        clips=setting.han_clips,
        official_seconds=seconds["official"],
        fp32_seconds=seconds["fp32"],
        bf16_seconds=bf16,
        fp32_over_official=seconds["official"] / seconds["fp32"],
        bf16_over_official=seconds["official"] / bf16 if bf16 else None,
    )
