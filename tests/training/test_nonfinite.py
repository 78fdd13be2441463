"""Steps that are skipped because a value is not finite: counted, named, and bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from avvp_dist.errors import NumericsError
from avvp_dist.loading.loader import ClipBatch, read_clips
from avvp_dist.loading.mixture import Mixture
from avvp_dist.runtime.ranks import single_rank
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.training.nonfinite import NonfiniteSteps
from avvp_dist.training.outcome import StepLosses


def losses(loss: float = 1.0) -> StepLosses:
    made = StepLosses()
    made.add({"loss": torch.tensor(loss), "own": torch.tensor(1.0)}, 1.0)
    return made


BAD = float("nan")


def batch_of(data: Mixture, *broken: int) -> ClipBatch:
    """Eight clips, of which the rows `broken` hold a value that is not finite.

    So do the headers that lie between their streams in a tar, as those of large streams do.
    """
    batch, _ = read_clips(data, np.arange(20, 28))
    streams = {name: x.clone() for name, x in batch.streams.items()}
    batch.buffer.fill_(float("nan"))
    for name, stream in streams.items():
        stream[list(broken), 0, 0] = float("inf")
        batch.streams[name].copy_(stream)
    return batch


@pytest.fixture
def data(packed: dict[str, ShardSet]) -> Mixture:
    return Mixture([packed["train"]])


def test_the_clips_that_are_not_finite_are_named(
    data: Mixture, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = NonfiniteSteps(1, data, single_rank())
    steps.note(7, False, losses(BAD), [batch_of(data, 2), batch_of(data, 5)])
    named = f"{data.id(22)}, {data.id(25)}"
    assert (
        f"step 7 is skipped: loss not finite on rank [0], clips {named}" in capsys.readouterr().err
    )
    assert steps.total == 1


def test_too_many_in_a_row_end_the_training(data: Mixture) -> None:
    steps, batches = NonfiniteSteps(2, data, single_rank()), [batch_of(data)]
    for step in range(2):
        steps.note(step, False, losses(), batches)
    steps.note(2, True, losses(), batches)  # a good step between them begins a new row
    for step in (3, 4):
        steps.note(step, False, losses(), batches)
    with pytest.raises(NumericsError, match=r"step 5 .*the gradient not finite; 3 in a row"):
        steps.note(5, False, losses(), batches)
    assert steps.total == 5


def test_where_all_features_are_finite_every_clip_is_named(
    data: Mixture, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    steps = NonfiniteSteps(3, data, single_rank())
    steps.note(0, False, losses(BAD), [batch_of(data)])
    said = capsys.readouterr().err
    assert all(data.id(clip) in said for clip in range(20, 28))
