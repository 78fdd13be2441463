"""The clip stream: the same clips in the same order, on any number of ranks, from any step."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avvp_dist.errors import CheckpointError, ConfigError
from avvp_dist.loading.order import ClipPool
from avvp_dist.loading.stream import EMPTY, ClipStream

SHARDS = st.lists(st.integers(1, 12), min_size=1, max_size=7)
"""Number of clips in each shard."""
RANKS = st.sampled_from([1, 2, 3, 4])


def pools(sizes: list[int], weight: float = 1.0) -> list[ClipPool]:
    shards = np.repeat(np.arange(len(sizes)), sizes)
    return [ClipPool(np.arange(len(shards)) + 5, shards, weight)]


@settings(deadline=None)
@given(
    SHARDS,
    RANKS,
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 3),
    st.integers(0, 9),
)
def test_ranks_share_the_same_global_batches(
    sizes: list[int], ranks: int, micro: int, size: int, pad: bool, block: int, seed: int
) -> None:
    batch = ranks * micro * size
    common: dict[str, Any] = {"seed": seed, "block": block, "pad": pad}
    try:
        alone = ClipStream(pools(sizes), batch, **common)
    except ConfigError:
        assert sum(sizes) < batch and not pad
        return
    streams = [
        ClipStream(
            pools(sizes), batch, rank=rank, world_size=ranks, gradient_accumulation=micro, **common
        )
        for rank in range(ranks)
    ]
    for step in range(3 * alone.steps_per_epoch):
        expected = alone.batch(step).tolist()
        assert len(expected) == batch
        parts = [np.split(stream.batch(step), micro) for stream in streams]
        # Each micro-batch of all ranks is the next part of the batch.
        assert [clip for part in zip(*parts, strict=True) for clip in np.concatenate(part)] == (
            expected
        )
        assert streams[-1].global_batch(step).tolist() == expected
        assert streams[0].planned(step) == batch - expected.count(EMPTY)


@settings(deadline=None)
@given(SHARDS, st.integers(1, 20), st.booleans(), st.integers(0, 3))
def test_every_clip_comes_once_an_epoch(
    sizes: list[int], batch: int, pad: bool, block: int
) -> None:
    total = sum(sizes)
    if total < batch and not pad:
        return
    stream = ClipStream(pools(sizes), batch, seed=1, block=block, pad=pad)
    for epoch in range(3):
        steps = range(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch)
        seen = np.concatenate([stream.batch(step) for step in steps])
        clips = seen[seen != EMPTY]
        assert len(set(clips)) == len(clips) == (total if pad else total // batch * batch)
        assert (seen == EMPTY).sum() == (-total % batch if pad else 0)
        assert (seen[: len(clips)] != EMPTY).all()  # empty places are the last ones


@settings(deadline=None)
@given(SHARDS, RANKS, st.integers(0, 40), st.booleans())
def test_a_stream_goes_on_from_any_step_on_any_number_of_ranks(
    sizes: list[int], ranks: int, done: int, pad: bool
) -> None:
    batch = 12
    if sum(sizes) < batch and not pad:
        return
    undisturbed = ClipStream(pools(sizes), batch, seed=3, pad=pad)
    expected = [undisturbed.batch(step).tolist() for step in range(done + 6)][done:]
    resumed = [  # new objects, as in new processes
        ClipStream(pools(sizes), batch, seed=3, pad=pad, rank=rank, world_size=ranks)
        for rank in range(ranks)
    ]
    for step, clips in enumerate(expected, done):
        assert [c for stream in resumed for c in stream.batch(step).tolist()] == clips


def test_the_time_to_resume_does_not_grow_with_the_step() -> None:
    def seconds(step: int) -> float:
        stream = ClipStream(pools([50_000] * 4), 256, seed=1)
        started = time.process_time()
        stream.batch(step)
        return time.process_time() - started

    first = min(seconds(0) for _ in range(5))
    late = min(seconds(10**9) for _ in range(5))
    assert late < 3 * first + 0.01


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (6, {"world_size": 4}, r"trainer\.batch_size=6 .* 4 ranks"),
        (
            6,
            {"gradient_accumulation": 4},
            r"trainer\.batch_size=6 .*trainer\.gradient_accumulation=4",
        ),
        (6, {"world_size": 2, "gradient_accumulation": 2}, r"trainer\.batch_size=6 "),
        (21, {}, r"trainer\.batch_size=21 is more than the 20 clips .*data\.last_batch=pad"),
    ],
)
def test_a_batch_that_cannot_be_is_named(batch: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClipStream(pools([20]), batch, seed=0, **options)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"batch_size": 8}, r"trainer\.batch_size: 4 then, 8 now"),
        ({"seed": 2}, r"trainer\.seed: 1 then, 2 now"),
        ({"block": 3}, r"data\.order: global then, block of 3 now"),
        ({"pad": True}, r"data\.last_batch: drop then, pad now"),
        ({"pools": pools([9, 10])}, r"clips \(data\.heldout\): "),
        ({"pools": pools([10, 10], 0.5)}, r"data\.weights: \[1\.0\] then, \[0\.5\] now"),
        ({"new": ["f"]}, r"labels: not known then, \['f'\] now"),
        ({"data": ["e"]}, r"shard sets: \['d'\] then, \['e'\] now"),
    ],
)
def test_another_order_is_refused_and_named(changed: dict[str, Any], named: str) -> None:
    def make(**options: Any) -> ClipStream:
        given = {"pools": pools([10, 10]), "batch_size": 4, "seed": 1, **options}
        return ClipStream(**given)

    saved = json.loads(json.dumps({**make().identity(), "shard sets": ["d"]}))
    make(world_size=2, rank=1).check_same(saved, {"shard sets": ["d"]})
    lineage = {"shard sets": changed.pop("data", ["d"])}
    if "new" in changed:
        lineage["labels"] = changed.pop("new")
    with pytest.raises(CheckpointError, match=named):
        make(**changed).check_same(saved, lineage)
