"""Files mapped into memory: numbers are gathered from where they lie, into where they belong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avvp_dist.shards.mapping import Gather, Mapping
from avvp_dist.shards.schema import DTYPES


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files of random numbers, whose sizes are no multiple of a page."""
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


def first_numbers(mapping: Mapping, count: int) -> np.ndarray:
    """The first `count` numbers of file 0."""
    out = np.empty((1, count), np.float16)
    Gather()(mapping.addresses(np.array([0]), np.array([0]), 2 * count), out)
    return out[0]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 2]), st.integers(0, 950)), max_size=20),
    st.integers(1, 40),
    st.integers(0, 3),
    st.sampled_from(DTYPES),
)
def test_numbers_go_into_the_rows_of_the_caller(
    files: list[Path], wanted: list[tuple[int, int]], count: int, margin: int, dtype: str
) -> None:
    """From files of two mappings at once, into columns of a wider array."""
    mappings, size = (mapped(files), mapped(files)), np.dtype(dtype).itemsize
    addresses = np.array(
        [
            mappings[row % 2].addresses(np.array([file]), np.array([size * at]), size * count)[0]
            for row, (file, at) in enumerate(wanted)
        ],
        np.int64,
    )
    buffer = np.full((len(wanted), count + 2 * margin), 7, dtype)
    Gather()(addresses, buffer[:, margin : margin + count])
    for row, (file, at) in zip(buffer, wanted, strict=True):
        expected = np.fromfile(files[file], dtype, count, offset=size * at)
        np.testing.assert_array_equal(row[margin : margin + count], expected)
        assert (row[:margin] == 7).all() and (row[margin + count :] == 7).all()


@pytest.mark.parametrize(("number", "offset"), [(0, -2), (0, 9994), (1, 0), (2, 4092)])
def test_an_address_outside_of_its_file_is_an_error(
    files: list[Path], number: int, offset: int
) -> None:
    mapping = mapped(files)
    with pytest.raises(IndexError):
        mapping.addresses(np.array([0, number]), np.array([0, offset]), 8)


def test_a_file_can_be_populated_unmapped_and_mapped_again(files: list[Path]) -> None:
    mapping = mapped(files)
    before = first_numbers(mapping, 8)
    mapping.populate(0)
    mapping.unmap(0)
    mapping.map(0, files[0])
    np.testing.assert_array_equal(first_numbers(mapping, 8), before)


def test_reserved_addresses_cost_no_memory() -> None:
    huge = [Mapping([2**30] * 200) for _ in range(3)]
    last = huge[0].addresses(np.array([0, 199]), np.array([0, 2**30 - 8]), 8)
    assert last[1] - last[0] == 200 * 2**30 - 8


def test_gathered_numbers_outlive_the_mapping(files: list[Path]) -> None:
    mapping = mapped(files)
    numbers = first_numbers(mapping, 8)
    del mapping
    np.testing.assert_array_equal(numbers, np.fromfile(files[0], np.float16)[:8])
