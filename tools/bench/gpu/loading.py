"""Rates of the loader into pinned memory, and of copies from there to the GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from avvp_dist.loading.loader import Loader
from avvp_dist.loading.mixture import Mixture
from avvp_dist.loading.stream import ClipStream
from avvp_dist.runtime.ranks import single_rank
from tools.bench.gpu.loop import config_of, wait_for_gpu
from tools.bench.gpu.rows import Loading, Mode, Note, Setting

COPIES = 10


def run(setting: Setting, deadline: float) -> Iterator[Loading | Note]:
    """Read batches as training does, then copy buffers from both kinds of memory."""
    device, data = single_rank().device, config_of(setting, setting.profiled, Mode("fp32")).data
    mixture = Mixture.open(data.shards, data.weights, data)
    stream = ClipStream(mixture.pools(), setting.profiled, seed=1)
    loader = Loader(mixture, stream, data, device)
    begun, steps, pinned = 0.0, 0, True
    for number, micro_batches in enumerate(loader.steps(0, 10**9)):
        steps = number - setting.warm_up
        pinned = pinned and all(batch.buffer.is_pinned() for batch in micro_batches)
        if not steps:  # the shards have been opened
            begun = time.perf_counter()
        elif steps > 0 and time.perf_counter() - begun > setting.seconds:
            break
    rate = steps * setting.profiled / (time.perf_counter() - begun)
    on_gpu = device.type == "cuda"
    yield Loading(
        clips=setting.profiled,
        clips_per_second=rate,
        read_gb_per_second=rate * mixture.layout.row_bytes / 1e9,
        pinned=pinned,
        pinned_gb_per_second=copied(setting.buffer, device, pinned=True) if on_gpu else None,
        pageable_gb_per_second=copied(setting.buffer, device, pinned=False),
    )
    if on_gpu and not pinned:
        yield Note("the loader reads into memory that is not pinned", failed=True)


def copied(size: int, device: torch.device, *, pinned: bool) -> float:
    """GB/s of copies of `size` bytes from the host's memory to the device."""
    source = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    target.copy_(source)
    wait_for_gpu()
    begun = time.perf_counter()
    for _ in range(COPIES):
        target.copy_(source, non_blocking=True)
    wait_for_gpu()
    return COPIES * size / (time.perf_counter() - begun) / 1e9
