"""Files in one range of addresses: what is gathered, mapped, given back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avvp_dist.shards.mapping import Mapping


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files of random numbers, of sizes that are no multiple of a page."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    paths = [folder / str(n) for n in range(3)]
    for path, count in zip(paths, (5000, 3, 2049), strict=True):
        rng.random(count).astype(np.float16).tofile(path)
    return paths


def mapped(files: list[Path]) -> Mapping:
    mapping = Mapping([path.stat().st_size for path in files])
    for number, path in enumerate(files):
        mapping.map(number, path)
    return mapping


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 2]), st.integers(0, 2000)), max_size=20),
    st.integers(1, 40),
    st.booleans(),
)
def test_numbers_come_from_where_they_lie(
    files: list[Path], wanted: list[tuple[int, int]], count: int, into: bool
) -> None:
    mapping = mapped(files)
    offsets = np.array([mapping.starts[file] + 2 * at for file, at in wanted], np.int64)
    out = np.zeros((len(wanted), count), np.float16) if into else None
    found = mapping.gather(offsets, count, out)
    assert found.shape == (len(wanted), count)
    for row, (file, at) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(row, np.fromfile(files[file], np.float16)[at : at + count])
    if out is not None:
        np.testing.assert_array_equal(out, found)


def test_what_lies_outside_is_an_error(files: list[Path]) -> None:
    mapping = mapped(files)
    for out in (None, np.zeros((1, 4), np.float16)):
        with pytest.raises(IndexError):
            mapping.gather(np.array([mapping.starts[-1]]), 4, out)


def test_a_file_can_be_populated_unmapped_and_mapped_again(files: list[Path]) -> None:
    mapping = mapped(files)
    before = mapping.gather(mapping.starts[:1], 8)
    mapping.populate(0)
    mapping.unmap(0)
    mapping.map(0, files[0])
    np.testing.assert_array_equal(mapping.gather(mapping.starts[:1], 8), before)


def test_the_room_costs_addresses_and_no_memory() -> None:
    huge = [Mapping([2**30] * 200) for _ in range(3)]
    assert huge[0].starts[-1] == 200 * 2**30


def test_what_was_gathered_outlives_the_mapping(files: list[Path]) -> None:
    mapping = mapped(files)
    found = mapping.gather(mapping.starts[:1], 8)
    expected = found.copy()
    del mapping
    np.testing.assert_array_equal(found, expected)
