"""Packing: the same bytes in any folder, arrays that come back, and places that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avvp_dist.config import PackConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.packing.job import pack
from tests.packing.packed import OFF, content, run, write_source


def test_the_folder_does_not_change_the_bytes(tmp_path: Path) -> None:
    one = run(write_source(tmp_path / "here"), tmp_path / "one")
    two = run(write_source(tmp_path / "there"), tmp_path / "two")
    assert [shard.clips for shard in one.shards] == [6, 6, 6, 2]
    assert content(one.folder) == content(two.folder)
    assert one.digest == two.digest
    assert not (tmp_path / "one" / ".pack").exists()


def test_the_arrays_of_the_source_come_back(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    packed = run(source, tmp_path / "out")
    with np.load(source / "features_train.npz") as file:
        gathered = packed.gather(np.arange(20))
        for name in ("audio", "visual"):
            np.testing.assert_array_equal(gathered[name], file[name].astype(np.float16))


def test_tiny_values_come_back_from_float32(tmp_path: Path) -> None:
    tiny = {
        name: np.random.default_rng(0).random((20, 10, 4)) * 1e-9 for name in ("audio", "visual")
    }
    source = write_source(tmp_path / "source", **tiny)
    with pytest.raises(DataError, match=r"too small for float16.*dtype=float32"):
        run(source, tmp_path / "out")
    packed = run(source, tmp_path / "out", dtype="float32")
    for name, stored in packed.gather(np.arange(20)).items():
        np.testing.assert_array_equal(stored, tiny[name].astype(np.float32))
    assert packed.manifest.streams["audio"].dtype == "float32"
    with pytest.raises(DataError, match=r"'dtype': 'float32'"):
        run(source, tmp_path / "out")


def test_t_can_be_larger_than_in_the_source(tmp_path: Path) -> None:
    packed = run(write_source(tmp_path / "source"), tmp_path / "out", snippets=12)
    assert packed.snippets == 12 and set(packed.lengths.tolist()) == {10}
    with pytest.raises(DataError, match=r"6 of 20 clips are broken: clip -a\.0_0_10: length 10"):
        run(tmp_path / "source", tmp_path / "small", snippets=8)


@pytest.mark.parametrize(
    ("keys", "kind", "named"),
    [
        ({"out": "s3://bucket/set"}, ConfigError, "out=s3://bucket/set is no local folder"),
        ({"annotations": "nowhere"}, DataError, "annotations: nowhere holds no AVVP"),
    ],
)
def test_impossible_places_are_named(
    tmp_path: Path, keys: dict[str, str], kind: type[Exception], named: str
) -> None:
    given = {"source": str(write_source(tmp_path / "source")), "out": str(tmp_path / "out"), **keys}
    with pytest.raises(kind, match=named):
        pack(PackConfig(tracking=OFF, **given))
