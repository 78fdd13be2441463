"""Videos that must not be trained on: recognised by every form of name, in every kind of list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avvp_dist.annotations.video_ids import (
    HeldOutVideos,
    fingerprints,
    llp_heldout,
    read_names,
    videos,
)
from avvp_dist.errors import DataError


def names(*ids: str) -> np.ndarray:
    return np.array([one.encode() for one in ids], "S")


def same(one: str, other: str) -> bool:
    # Beside a long name: the width of the array must not matter.
    (a,), (b, _) = videos(names(one)), videos(names(other, "x" * 40))
    return bool(a == b)


@pytest.mark.parametrize(
    "other",
    [
        "AP_-61o0Nvk_0_10",
        "AP_-61o0Nvk_101.8_111.8",
        "AP_-61o0Nvk_101800_111800.mp4",
        "AP_-61o0Nvk",
    ],
)
def test_one_video_has_many_names(other: str) -> None:
    assert same("AP_-61o0Nvk_30_40", other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("AP_-61o0Nvk_0_10", "AP_-61o0Nvj_0_10"),
        ("AP_-61o0Nvk_0_10", "ap_-61o0nvk_0_10"),
        ("sim-train-0_0_10", "sim-train-0_10_20x"),  # no time counts at the end: another id
        ("sim-000123_1", "sim-000123_2"),
        ("sim-0000123_1", "sim-0000123"),
        ("AP_-61o0Nvk_0_10_20", "AP_-61o0Nvk_0_10"),
        ("AP_-61o0Nvk-0-10", "AP_-61o0Nvk"),
        ("c7", "c8"),
        ("AP_-61o0N k_0_10", "AP_-61o0N k_10_20"),
    ],
)
def test_other_ids_stand_for_themselves_as_a_whole(one: str, other: str) -> None:
    assert same(one, one) and same(other, other)
    assert not same(one, other)


def test_blocks_of_names_do_not_run_into_each_other() -> None:
    ids = names(*(f"{n:011d}_{n}_{n + 10}" for n in range(70_000)))
    np.testing.assert_array_equal(videos(ids), videos(names(*(f"{n:011d}" for n in range(70_000)))))
    assert len(np.unique(videos(ids))) == 70_000


def test_videos_are_found_and_shown_by_their_first_clip() -> None:
    held = HeldOutVideos.of("list", names("AP_-61o0Nvk_0_10", "c7", "BjCEufrlXm4_20_30"), "")
    found = held.find(videos(names("c8", "BjCEufrlXm4_0_10", "c7", "")))
    assert (found >= 0).tolist() == [False, True, True, False]
    assert held.shown[found[1:3]].tolist() == [b"BjCEufrlXm4_20_30", b"c7"]
    nothing = HeldOutVideos.of("none", names()[:0], "")
    assert nothing.find(videos(names("c7"))).tolist() == [-1]


LISTS = {
    "llp.csv": 'filename\tevent_labels\nBjCEufrlXm4_20_30\tSpeech,Dog\n-_CEuf"lXm_1.5_2\tDog\n',
    "official.csv": "# Segments csv created Sun Mar  5 10:54:31 2017\n"
    "# num_ytids=2, num_segs=2, num_unique_labels=3, num_positive_labels=3\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
    'BjCEufrlXm4, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n-_CEuf"lXm_1.5_2, 0, 10, "/m/a"\n',
    "commas.csv": 'label,filename\nDog,BjCEufrlXm4_20_30\nDog,-_CEuf"lXm_1.5_2\n',
    "names.txt": 'BjCEufrlXm4_20000_30000.mp4\r\n\r\n-_CEuf"lXm_1.5_2\r\n',
}


@pytest.mark.parametrize("file", LISTS)
def test_every_kind_of_list_is_read(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    path.write_text(LISTS[file], newline="")
    expected = videos(names("BjCEufrlXm4", '-_CEuf"lXm_1.5_2'))
    np.testing.assert_array_equal(videos(read_names(path)), expected)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (LISTS["official.csv"].rpartition("-_")[0].encode(), "has 1 rows, its header says 2"),
        (b"", "names no clips"),
        (b"filename\n", "names no clips"),
        (b"label,filename\nDog\n", "a row has no name"),
        (b"\xff\xfe\x00", "is no text"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_list_is_named(tmp_path: Path, text: bytes | None, named: str) -> None:
    path = tmp_path / "list.csv"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(DataError) as caught:
        read_names(path)
    assert str(caught.value).startswith(f"{path}")
    assert named in str(caught.value)


# With LLP's and AudioSet's own lists.


@pytest.mark.shared
def test_the_built_in_list_is_what_llps_files_give(shared: Path) -> None:
    made, built_in = fingerprints(shared / "llp"), llp_heldout()
    assert {split: len(found) for split, found in made.items()} == {"val": 649, "test": 1200}
    for split, found in made.items():
        shown = f"llp {split}".encode()
        np.testing.assert_array_equal(built_in.videos[built_in.shown == shown], found)


@pytest.mark.shared
def test_audioset_holds_the_held_out_videos_that_it_is_known_to(shared: Path) -> None:
    held = llp_heldout()
    listed = read_names(shared / "audioset" / "unbalanced_train-100k.txt")
    assert len(listed) == 100_000
    rows = held.find(videos(listed))
    shown, counts = np.unique(held.shown[rows[rows >= 0]], return_counts=True)
    assert dict(zip(shown.tolist(), counts.tolist(), strict=True)) == {
        b"llp val": 39,
        b"llp test": 60,
    }
    for name, count in (("balanced_train", 22_160), ("eval", 20_371)):
        listed = read_names(shared / "audioset" / f"{name}_segments.csv")
        assert len(listed) == count
        assert (held.find(videos(listed)) < 0).all()
