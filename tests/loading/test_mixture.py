"""Several shard sets as one: their numbers, their weights, and what may not be mixed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from avvp_dist.config import LoaderConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.loading.loader import read_clips
from avvp_dist.loading.mixture import Mixture
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet

SIZES = {"audio": 300, "visual": 700}


def write(
    out: Path,
    count: int,
    first: float = 0,
    dim: int = 4,
    extractor: str = "x",
    dtype: str = "float16",
) -> ShardSet:
    """Clip n is filled with the number first + n."""
    made = [Clip(f"{out.name}{n}", {"audio": np.full((10, dim), first + n)}) for n in range(count)]
    return write_shard_set(made, out, clips_per_shard=3, extractor=extractor, dtype=dtype)


@pytest.fixture
def mixture(tmp_path: Path) -> Mixture:
    """Clips 0 to 6 hold 0 to 6, clips 7 to 11 hold 100 to 104."""
    return Mixture([write(tmp_path / "a", 7), write(tmp_path / "b", 5, 100)], [1, 2])


def test_clips_are_numbered_one_set_after_the_other(mixture: Mixture) -> None:
    assert len(mixture) == 12
    assert [mixture.id(n) for n in (0, 6, 7, 11)] == ["a0", "a6", "b0", "b4"]
    assert mixture.lengths.tolist() == [10] * 12
    assert len(set(mixture.hashes.tolist())) == 12
    batch, good = read_clips(mixture, np.array([11, 0, 7, 6, 8]))
    assert good.all()
    assert batch.streams["audio"][:, 0, 0].tolist() == [104, 0, 100, 6, 101]
    assert mixture.owners(np.array([11, 0, 7, 6])).tolist() == [1, 0, 1, 0]


def test_pools_hold_the_chosen_clips_of_each_set(mixture: Mixture) -> None:
    chosen = np.ones(12, bool)
    chosen[[0, 8]] = False
    one, two = mixture.pools(chosen)
    assert (one.clips.tolist(), one.shards.tolist()) == ([1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 1, 2])
    assert (two.clips.tolist(), two.shards.tolist()) == ([7, 9, 10, 11], [0, 0, 1, 1])
    assert (one.weight, two.weight, two.clips_per_epoch) == (1, 2, 8)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"extractor": "y"}, "extractor 'y'"),
        ({"dim": 5}, "dims {'audio': 5}"),
        ({"dtype": "float32"}, "dtype 'float32'"),
    ],
)
def test_features_of_other_backbones_are_refused(
    tmp_path: Path, other: dict[str, object], named: str
) -> None:
    one, two = write(tmp_path / "a", 2), write(tmp_path / "b", 2, **other)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"{two.name} has the {named}"):
        Mixture([one, two])


@pytest.mark.parametrize("parts", [1, 2])
def test_float32_is_read_as_it_is(parts: int, tmp_path: Path) -> None:
    """From one set in its own layout, and from two side by side."""
    sets = [write(tmp_path / f"{n}", 4, 1e-9, dtype="float32") for n in range(parts)]
    mixture = Mixture(sets)
    batch, good = read_clips(mixture, np.array([2, 0]))
    assert good.all() and batch.buffer.dtype == torch.float32
    expected = np.float32([2 + 1e-9, 1e-9])
    np.testing.assert_array_equal(batch.streams["audio"][:, 3, 1].numpy(), expected)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], [1.0, -1.0], [1.0, float("nan")]])
def test_weights_that_cannot_be_are_named(tmp_path: Path, weights: list[float]) -> None:
    sets = [write(tmp_path / name, 2) for name in "ab"]
    with pytest.raises(ConfigError, match=r"data\.weights=.* 2 shard sets"):
        Mixture(sets, weights)


def test_damage_in_the_second_set_has_the_mixtures_numbers(tmp_path: Path) -> None:
    for name, count in (("a", 7), ("b", 5)):
        write(tmp_path / name, count)
    (tmp_path / "b" / "shard-000001.tar").unlink()
    places = [str(tmp_path / name) for name in "ab"]
    with pytest.raises(DataError, match=r"b/shard-000001\.tar is missing"):
        Mixture.open(places, [], LoaderConfig())
    mixture = Mixture.open(places, [], LoaderConfig(max_bad_fraction=0.2))
    assert mixture.damage.numbers == {10, 11}
    batch, good = read_clips(mixture, np.array([9, 10, 0, 11]))
    assert good.tolist() == [True, False, True, False]
    assert not batch.streams["audio"][torch.from_numpy(~good)].any()


def test_sets_of_other_layouts_are_read_into_one_buffer(tmp_path: Path) -> None:
    """Ours are read in one run, the tars of others stream by stream."""
    rng = np.random.default_rng(0)
    streams = [
        {name: rng.standard_normal((4, dim)).astype(np.float16) for name, dim in SIZES.items()}
        for _ in range(9)
    ]
    clips = [Clip(f"c{n}", one) for n, one in enumerate(streams)]
    ours = write_shard_set(clips[:5], tmp_path / "a", clips_per_shard=2)
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "b" / "x.tar", "w") as tar:
        for name in ("visual", "audio"):  # far from each other in the tar
            for clip in clips[5:]:
                member = io.BytesIO()
                np.save(member, clip.streams[name])
                info = tarfile.TarInfo(f"{clip.id}.{name}.npy")
                info.size = len(member.getvalue())
                tar.addfile(info, io.BytesIO(member.getvalue()))
    mixture = Mixture([ours, ShardSet(tmp_path / "b")])
    assert [part.layout.one_run for part in mixture.sets] == [True, False]
    order = np.array([8, 0, 4, 5, 5, 2, 7])
    buffer = np.full((len(order), mixture.layout.width), 7, np.float16)
    assert mixture.read_into(buffer, order).all()
    for name, views in mixture.layout.views(buffer).items():
        expected = np.stack([streams[clip][name] for clip in order])
        np.testing.assert_array_equal(views, expected)
