"""The clip stream: the same clips in the same order, on any number of ranks, from any step."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avvp_dist.data.stream import ClipStream
from avvp_dist.errors import ConfigError

SHARES = st.tuples(
    st.sampled_from([1, 2, 3, 4]), st.integers(1, 3), st.integers(1, 4), st.integers(0, 30)
)
"""Ranks, micro-batches, clips in a micro-batch, clips more than one batch."""


def numbers(count: int) -> np.ndarray:
    """Clip numbers with gaps, as they are where some clips are held out."""
    return np.arange(count) * 3 + 5


def drawn(stream: ClipStream, steps: int) -> list[list[list[int]]]:
    return [[part.tolist() for part in stream.next()] for _ in range(steps)]


@settings(deadline=None)
@given(SHARES, st.integers(1, 3), st.integers(0, 9))
def test_ranks_and_micro_batches_share_the_same_global_batches(
    shares: tuple[int, int, int, int], epochs: int, seed: int
) -> None:
    ranks, micro, size, more = shares
    batch = ranks * micro * size
    clips = numbers(batch + more)
    alone = ClipStream(clips, batch, seed=seed)
    steps = epochs * alone.steps_per_epoch
    parts = [
        drawn(
            ClipStream(clips, batch, seed=seed, rank=rank, world_size=ranks, micro_batches=micro),
            steps,
        )
        for rank in range(ranks)
    ]
    for step, ((expected,), *shared) in enumerate(zip(drawn(alone, steps), *parts, strict=True)):
        assert all(len(pieces) == micro for pieces in shared)
        assert all(len(piece) == size for pieces in shared for piece in pieces)
        assert [clip for pieces in shared for piece in pieces for clip in piece] == expected
        epoch, within = divmod(step, alone.steps_per_epoch)
        assert alone.global_batch(epoch, within).tolist() == expected


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 40), st.integers(0, 9))
def test_a_clip_comes_at_most_once_an_epoch(batch: int, more: int, seed: int) -> None:
    clips = numbers(batch + more)
    stream = ClipStream(clips, batch, seed=seed)
    for _ in range(3):
        seen = np.array(drawn(stream, stream.steps_per_epoch)).ravel()
        assert len(set(seen)) == len(seen) == len(clips) // batch * batch
        assert set(seen) <= set(clips)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 9))
def test_every_clip_comes_once_an_epoch_if_the_batch_divides(
    batch: int, steps: int, seed: int
) -> None:
    clips = numbers(batch * steps)
    stream = ClipStream(clips, batch, seed=seed)
    for _ in range(2):
        assert sorted(np.array(drawn(stream, steps)).ravel()) == clips.tolist()


@settings(deadline=None)
@given(SHARES, st.integers(0, 40), st.data())
def test_a_stream_goes_on_from_any_step(
    shares: tuple[int, int, int, int], done: int, data: st.DataObject
) -> None:
    ranks, micro, size, more = shares
    batch = ranks * micro * size
    rank = data.draw(st.integers(0, ranks - 1))

    def fresh() -> ClipStream:
        return ClipStream(
            numbers(batch + more),
            batch,
            seed=3,
            rank=rank,
            world_size=ranks,
            micro_batches=micro,
        )

    stream, resumed = fresh(), fresh()
    drawn(stream, done)
    state = json.loads(json.dumps(stream.state()))  # plain data, as a checkpoint keeps it
    drawn(resumed, data.draw(st.integers(0, 5)))  # wherever it stood before
    resumed.restore(state)
    assert resumed.state() == state
    assert drawn(resumed, 12) == drawn(stream, 12)


@pytest.mark.parametrize(
    "other",
    [
        lambda: ClipStream(numbers(64), 64, seed=2).global_batch(0, 0),
        lambda: ClipStream(numbers(64), 64, seed=1).global_batch(1, 0),
        lambda: numbers(64),
    ],
    ids=["seed", "epoch", "order of the shards"],
)
def test_seed_and_epoch_change_the_order(other: Callable[[], np.ndarray]) -> None:
    order = ClipStream(numbers(64), 64, seed=1).global_batch(0, 0)
    assert sorted(order) == sorted(other())
    assert order.tolist() != other().tolist()


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (6, {"world_size": 4}, r"trainer\.batch_size=6 .* 4 ranks"),
        (6, {"micro_batches": 4}, r"trainer\.batch_size=6 .*trainer\.accumulate=4"),
        (6, {"world_size": 2, "micro_batches": 2}, r"trainer\.batch_size=6 "),
        (21, {}, r"trainer\.batch_size=21 is more than the 20 clips"),
    ],
)
def test_a_batch_that_cannot_be_is_named(batch: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClipStream(numbers(20), batch, seed=0, **options)
