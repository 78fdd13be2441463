"""The record of a clip: ids as WebDataset keys, and what a valid clip is."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avvp_dist.errors import DataError
from avvp_dist.shards.schema import DTYPES, LLP_CLASSES, Clip, decode_key, encode_key, finite

DIMS = {"audio": 4, "visual": 6}


def streams(snippets: int = 10, **dims: int) -> dict[str, np.ndarray]:
    sizes = {**DIMS, **dims}
    return {name: np.ones((snippets, dim), np.float32) for name, dim in sizes.items()}


@settings(deadline=None)
@given(st.text())
def test_any_id_comes_back_from_its_key(clip_id: str) -> None:
    key = encode_key(clip_id)
    assert decode_key(key) == clip_id
    assert re.fullmatch(r"[A-Za-z0-9_=-]*", key)  # above all no dot and no slash


@pytest.mark.parametrize(
    ("clip_id", "key"),
    [
        ("AP0061o0Nvk_101.8_111.8", "AP0061o0Nvk_101=2E8_111=2E8"),
        ("-b2h9_dMQyk_0_10", "-b2h9_dMQyk_0_10"),
        ("_t-Q3bYWvHk_30_40", "_t-Q3bYWvHk_30_40"),
        ("a/b=c", "a=2Fb=3Dc"),
        ("=2E", "=3D2E"),
        ("ü", "=C3=BC"),
    ],
)
def test_ids_of_llp_stay_readable(clip_id: str, key: str) -> None:
    assert encode_key(clip_id) == key
    assert decode_key(key) == clip_id


@pytest.mark.parametrize(("length", "expected"), [(None, 10), (7, 7)])
def test_a_whole_clip_becomes_float16(length: int | None, expected: int) -> None:
    clip = Clip("a", streams(), ("Dog",), length).padded(10, DIMS)
    assert (clip.id, clip.labels, clip.length) == ("a", ("Dog",), expected)
    for name, dim in DIMS.items():
        array = clip.streams[name]
        assert (array.shape, array.dtype) == ((10, dim), np.float16)
        assert (array[:expected] == 1).all() and (array[expected:] == 0).all()


def test_a_short_clip_is_padded_and_keeps_its_length() -> None:
    clip = Clip("a", streams(6)).padded(10, DIMS)
    assert clip.length == 6
    uneven = streams(6) | {"visual": np.ones((8, 6))}
    with pytest.raises(DataError, match=r"clip a: its streams differ .*audio 6, visual 8"):
        Clip("a", uneven).padded(10, DIMS)
    assert Clip("a", uneven, length=6).padded(10, DIMS).length == 6
    assert [len(array) for array in clip.streams.values()] == [10, 10]
    assert all((array[6:] == 0).all() and array[:6].all() for array in clip.streams.values())


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, 70000, -70000])
@pytest.mark.parametrize("name", DIMS)
def test_a_value_that_is_not_finite_is_named(name: str, bad: float) -> None:
    clip = Clip("some_0_10", streams())
    clip.streams[name][3, 2] = bad
    what = "exceeds float16" if abs(bad) == 70000 else "not finite"
    with pytest.raises(DataError, match=f"clip some_0_10: stream {name} .*{what}"):
        clip.padded(10, DIMS)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (Clip("a", {"audio": np.ones((10, 4))}), r"clip a has the streams \['audio'\]"),
        (Clip("a", streams(motion=5)), r"clip a has .*'motion'.*has \['audio', 'visual'\]"),
        (Clip("a", streams(visual=5)), r"clip a: stream visual is \[10, 5\].* \[10, 6\]"),
        (Clip("a", streams(snippets=11)), r"clip a: length 11 is not within 10"),
        (Clip("a", streams(snippets=11), length=9), r"clip a: stream audio is \[11, 4\]"),
        (Clip("a", streams(snippets=9), length=10), r"clip a: stream audio is \[9, 4\]"),
        (Clip("a", streams() | {"audio": np.ones(10)}), r"clip a: stream audio is \[10\]"),
        (Clip("a", streams(snippets=0)), "clip a: length 0"),
    ],
)
def test_a_clip_of_other_sizes_is_named(clip: Clip, message: str) -> None:
    with pytest.raises(DataError, match=message):
        clip.padded(10, DIMS)


@pytest.mark.parametrize(
    ("dtype", "scale", "message"),
    [
        ("float16", 1e-8, "too small for float16.*dtype=float32"),
        ("float16", 1e-7, "too small for float16.*dtype=float32"),
        ("float16", 1e-200, "too small for float16.*dtype=float32"),
        ("float16", 1e5, r"exceeds float16 \(65504\).*dtype=float32"),
        ("float32", 1e-18, "too small for their cosines"),
        ("float32", 1e-46, "too small for their cosines"),
        ("float32", 1e18, "exceeds 1e.17"),
        ("float32", 1e39, "exceeds 1e.17"),
        ("float32", np.nan, "not finite"),
    ],
)
def test_what_a_type_cannot_hold_is_refused(dtype: str, scale: float, message: str) -> None:
    clip = Clip("a", {name: x * np.float64(scale) for name, x in streams().items()})
    with pytest.raises(DataError, match=f"^clip a: stream audio .*{message}"):
        clip.padded(10, DIMS, dtype)


@pytest.mark.parametrize("scale", [1e-16, 1e-7, 1.0, 1e6, 1e16])
def test_float32_holds_what_float16_cannot(scale: float) -> None:
    clip = Clip("a", {name: x * np.float32(scale) for name, x in streams().items()})
    stored = clip.padded(10, DIMS, "float32").streams
    for name, array in clip.streams.items():
        np.testing.assert_array_equal(stored[name], array)


def test_a_row_of_zeros_is_silence_in_any_type() -> None:
    silent = streams() | {"audio": np.zeros((10, 4))}
    for dtype in DTYPES:
        assert not Clip("a", silent).padded(10, DIMS, dtype).streams["audio"].any()


@settings(deadline=None)
@given(st.lists(st.integers(0, 0xFFFFFFFF), max_size=8), st.sampled_from(DTYPES))
def test_finite_agrees_with_numpy(bits: list[int], dtype: str) -> None:
    array = np.array(bits, np.uint32).view(dtype)
    assert finite(array) == bool(np.isfinite(array).all())


def test_llp_has_25_different_classes() -> None:
    assert len(set(LLP_CLASSES)) == 25
