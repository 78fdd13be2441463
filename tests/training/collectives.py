"""Started as `collectives.py SHARDS OUT`: the collectives of one training step at 64 ranks.

torch's fake process group stands for the ranks: it takes every call and sends nothing. Written to
OUT, for each size of the pool, are the name and the bytes of each collective in their order, and
the bytes of `exchanged`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from avvp_dist.config import EncoderConfig, PretrainConfig
from avvp_dist.grounding.version import Grounding
from avvp_dist.loading.loader import Loader
from avvp_dist.loading.mixture import Mixture
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.tasks.pretraining import PretrainingTask
from avvp_dist.training.footprint import exchanged
from avvp_dist.training.task import StepInfo
from avvp_dist.training.trainer import stream_of

RANK, RANKS, BATCH = 40, 64, 128


class Collectives(TorchDispatchMode):
    """Records the calls of torch.distributed, and the bytes that this rank sends in a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, float]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func.namespace == "c10d":
            largest = max(x.nbytes for x in args if isinstance(x, Tensor))
            self.sent.append((func.__name__, largest * (RANKS - 1) / RANKS))
        return func(*args, **(kwargs or {}))


def main(shards: str, out: str) -> None:
    dist.init_process_group("fake", rank=RANK, world_size=RANKS, store=FakeStore())
    ranks, found = Ranks(RANK, RANKS, torch.device("cpu")), []
    for negatives in (32, 64, 100, 0):  # fewer than ranks, one each, not a multiple, all
        config = PretrainConfig()
        config.data.shards, config.data.heldout, config.data.last_batch = [shards], 0.0, "pad"
        config.encoder = EncoderConfig("tiny")
        config.objective.negatives, config.trainer.batch_size = negatives, BATCH
        ranks, data = (
            Ranks(RANK, RANKS, torch.device("cpu")),
            Mixture.open([shards], [], config.data),
        )
        task = PretrainingTask(config, data, [Grounding(part) for part in data.sets], ranks)
        loader = Loader(data, stream_of(task, config, ranks), config.data, ranks.device)
        (clips,) = loader.read(0)
        batch = task.make_batch(clips, StepInfo(0, 0, 0.0))
        with Collectives() as collectives:
            loss, _ = task.module(batch)
            loss.backward()
        shapes = (data.snippets, task.encoder.width, sum(data.dims.values()), RANKS)
        planned = exchanged(negatives or BATCH, *shapes)
        found.append({"sent": collectives.sent, "planned": planned})
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[-2:])
