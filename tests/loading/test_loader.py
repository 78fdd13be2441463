"""The loader: the clips of the stream as tensors, ahead of need and without damaged ones."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avvp_dist.config import LoaderConfig
from avvp_dist.errors import DataError
from avvp_dist.loading.loader import Loader
from avvp_dist.loading.mixture import Mixture
from avvp_dist.loading.stream import EMPTY, ClipStream
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two sets of 17 and 10 clips; clip n of the mixture is filled with n + 1."""
    out, made = tmp_path_factory.mktemp("sets"), []
    for name, first, count in (("a", 0, 17), ("b", 17, 10)):
        clips = (
            Clip(f"{name}{n}", {s: np.full((4, 3), first + n + 1.0) for s in ("audio", "visual")})
            for n in range(count)
        )
        made.append(str(write_shard_set(clips, out / name, clips_per_shard=4).folder))
    return made


def loader(folders: list[str], batch: int, config: LoaderConfig, **options: int) -> Loader:
    data = Mixture.open(folders, [], config)
    stream = ClipStream(
        data.pools(),
        batch,
        seed=1,
        block=config.block_shards if config.order == "block" else 0,
        pad=config.last_batch == "pad",
        **options,
    )
    return Loader(data, stream, config, CPU)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 2),
    st.sampled_from(["global", "block"]),
    st.sampled_from(["drop", "pad"]),
    st.integers(1, 9),
    st.integers(0, 3),
    st.integers(0, 30),
)
def test_batches_are_what_the_stream_says(
    folders: list[str], sets: int, order: str, last: str, batch: int, prefetch: int, first: int
) -> None:
    config = LoaderConfig(order=order, block_shards=2, last_batch=last, prefetch=prefetch)
    made = loader(folders[:sets], batch, config)
    for step, (read,) in enumerate(made.steps(first, first + 9), first):
        expected = made.stream.batch(step)
        expected = expected[expected != EMPTY]
        assert read.clips.tolist() == expected.tolist() and read.count == len(expected)
        for stream in read.streams.values():
            assert stream.shape == (len(expected), 4, 3) and stream.dtype == torch.float16
            assert torch.equal(stream[:, 0, 0], torch.from_numpy(expected + 1.0).half())
            assert (stream == stream[:, :1, :1]).all()


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_memory_is_used_again_but_never_while_somebody_holds_it(
    folders: list[str], prefetch: int
) -> None:
    made = loader(folders, 3, LoaderConfig(prefetch=prefetch))
    held, addresses = {}, set()
    for step, (read,) in enumerate(made.steps(0, 60)):
        audio = read.streams["audio"]
        addresses.add(audio.data_ptr())
        if step % 7 == 0:
            held[step] = audio[1:, :, 0].T  # a view of a view is enough
        del read, audio
        for then, view in held.items():
            clips = made.stream.batch(then)[1:]
            assert torch.equal(view[0], torch.from_numpy(clips + 1.0).half())
    assert len(held) <= len(addresses) <= len(held) + prefetch + 3


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("micro", [1, 3])
def test_ranks_and_micro_batches_read_one_global_batch(
    folders: list[str], ranks: int, micro: int
) -> None:
    config = LoaderConfig(last_batch="pad")
    alone = loader(folders, 12, config)
    parts = [
        loader(folders, 12, config, rank=rank, world_size=ranks, gradient_accumulation=micro)
        for rank in range(ranks if 12 % (ranks * micro) == 0 else 0)
    ]
    for step in range(6 if parts else 0):
        # A micro-batch is the next part of the global batch, and each rank takes its part of it.
        by_micro_batch = zip(*(part.read(step) for part in parts), strict=True)
        reads = [read for parts_of_one in by_micro_batch for read in parts_of_one]
        found = [clip for read in reads if read.count for clip in read.clips.tolist()]
        assert found == alone.read(step)[0].clips.tolist()
        assert all(len(stream) >= 1 for read in reads for stream in read.streams.values())


def test_a_rank_without_clips_gets_a_stand_in(folders: list[str]) -> None:
    made = loader(folders[:1], 16, LoaderConfig(last_batch="pad"), rank=1, world_size=2)
    (read,) = made.read(1)  # the one clip that is left is rank 0's
    assert read.count == 0 and len(read.clips) == 1 and read.places.tolist() == [EMPTY]
    assert not any(stream.any() for stream in read.streams.values())


def test_closing_early_leaves_no_thread(folders: list[str]) -> None:
    before = threading.active_count()
    for _ in range(3):
        steps = loader(folders, 4, LoaderConfig(prefetch=2)).steps(0, 1000)
        next(steps)
        steps.close()
    for thread in threading.enumerate():
        if thread.name == "loader":
            thread.join(5)
    assert threading.active_count() <= before + 12  # idle openers that end with their sets
    assert not [t for t in threading.enumerate() if t.name == "loader"]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_damage_stops_or_is_left_out(folders: list[str], tmp_path: Path, prefetch: int) -> None:
    clips = (Clip(f"c{n}", {"audio": np.full((4, 3), n + 1.0)}) for n in range(20))
    shards = write_shard_set(clips, tmp_path, clips_per_shard=5)
    tar = tmp_path / "shard-000002.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"shard-000002\.tar has another SHA-256"):
        list(loader([str(tmp_path)], 5, LoaderConfig(prefetch=prefetch)).steps(0, 4))
    made = loader([str(tmp_path)], 5, LoaderConfig(prefetch=prefetch, max_bad_fraction=0.25))
    reads = [read for (read,) in made.steps(0, 4)]
    seen = [clip for read in reads if read.count for clip in read.clips.tolist()]
    assert sorted(seen) == [*range(10), *range(15, 20)]
    assert made.data.damage.numbers == set(range(10, 15))
    for step, read in enumerate(reads):
        assert made.stream.batch(step)[read.places[: read.count]].tolist() == (
            read.clips[: read.count].tolist()
        )
    whole = [clip for step in range(4) for clip in made.stream.batch(step).tolist()]
    assert seen == [clip for clip in whole if not 10 <= clip < 15]  # the order stays
    assert len(shards) == 20


def test_two_ranks_leave_out_the_same(tmp_path: Path) -> None:
    clips = (Clip(f"c{n}", {"audio": np.full((4, 3), n + 1.0)}) for n in range(20))
    write_shard_set(clips, tmp_path, clips_per_shard=5)
    (tmp_path / "shard-000001.tar").unlink()
    config = LoaderConfig(max_bad_fraction=0.5)
    alone = loader([str(tmp_path)], 4, config)
    parts = [loader([str(tmp_path)], 4, config, rank=r, world_size=2) for r in range(2)]
    for step in range(5):
        found = [c for p in parts for read in p.read(step) if read.count for c in read.clips]
        assert found == [c for read in alone.read(step) if read.count for c in read.clips]
