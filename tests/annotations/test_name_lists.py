"""Lists of names, in every kind of file, and LLP's and AudioSet's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avvp_dist.annotations.name_lists import fingerprints, read_names
from avvp_dist.annotations.video_ids import llp_heldout, videos
from avvp_dist.errors import DataError

LISTS = {
    "llp.csv": 'filename\tevent_labels\nBjCEufrlXm4_20_30\tSpeech,Dog\n-_CEuf"lXm_1.5_2\tDog\n',
    "official.csv": "# Segments csv created Sun Mar  5 10:54:31 2017\n"
    "# num_ytids=2, num_segs=2, num_unique_labels=3, num_positive_labels=3\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
    'BjCEufrlXm4, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n-_CEuf"lXm_1.5_2, 0, 10, "/m/a"\n',
    "commas.csv": 'label,filename\nDog,BjCEufrlXm4_20_30\nDog,-_CEuf"lXm_1.5_2\n',
    "ave.txt": "Category&VideoID&Quality&StartTime&EndTime\n"  # AVE's own separator
    'Church bell&BjCEufrlXm4&good&0&10\nHelicopters&-_CEuf"lXm_1.5_2&good&0&10\n',
    "semicolons.CSV": 'label;video_id;split\nDog;BjCEufrlXm4;train\nDog;-_CEuf"lXm_1.5_2;test\n',
    "tabs.tsv": 'start\tlabel\tYTID\n3\tDog\tBjCEufrlXm4\n3\tDog\t-_CEuf"lXm_1.5_2\n',
    "urls.TXT": 'https://www.youtube.com/watch?list=1&v=BjCEufrlXm4&t=3\n-_CEuf"lXm_1.5_2\n',
    "wavs.lst": 'YBjCEufrlXm4.wav\n-_CEuf"lXm_1.5_2.wav\n',
    "vggsound.csv": 'BjCEufrlXm4,30,"dog, barking",train\n-_CEuf"lXm_1.5_2,30,dog,test\n',
    "no_header.csv": 'dog,0,BjCEufrlXm4\ndog,1,-_CEuf"lXm_1.5_2\n',
    "names.txt": 'BjCEufrlXm4_20000_30000.mp4\r\n\r\n-_CEuf"lXm_1.5_2\r\n',
}


@pytest.mark.parametrize("file", LISTS)
def test_every_kind_of_list_is_read(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    path.write_text(LISTS[file], newline="")
    expected = videos(np.array([b"BjCEufrlXm4", b'-_CEuf"lXm_1.5_2']))
    found = videos(read_names(path))
    np.testing.assert_array_equal(found.fingerprints, expected.fingerprints)
    assert found.read.tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (LISTS["official.csv"].rpartition("-_")[0].encode(), "has 1 rows, its header says 2"),
        (b"", "names no clips"),
        (b"filename\n", "names no clips"),
        (b"label,filename\nDog\n", "a row has no name"),
        (b"\xff\xfe\x00", "is no text in UTF-8"),
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
    rows = held.find(videos(listed).fingerprints)
    shown, counts = np.unique(held.shown[rows[rows >= 0]], return_counts=True)
    assert dict(zip(shown.tolist(), counts.tolist(), strict=True)) == {
        b"llp val": 39,
        b"llp test": 60,
    }
    for name, count in (("balanced_train", 22_160), ("eval", 20_371)):
        listed = read_names(shared / "audioset" / f"{name}_segments.csv")
        assert len(listed) == count
        assert (held.find(videos(listed).fingerprints) < 0).all()
