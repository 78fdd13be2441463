"""LLP's annotations: from small files written here, and from the real ones if they exist."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.errors import DataError

HEADER = "filename\tonset\toffset\tevent_labels\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "AVVP_train.csv").write_text(
        "filename\tevent_labels\nAP0061o0Nvk_101.8_111.8\tDog\n-b_0_10\tSpeech,Clapping\n"
    )
    (tmp_path / "AVVP_val_pd.csv").write_text("filename\tevent_labels\nval_0_10\tCar\n")
    (tmp_path / "AVVP_test_pd.csv").write_text(
        "filename\tevent_labels\n_t_0_10\tDog,Speech\nu_0_10\tCat\n"
    )
    (tmp_path / "AVVP_eval_audio.csv").write_text(
        HEADER
        + "_t_0_10\t2\t5\tDog\n"
        + "_t_0_10\t2\t5\tDog\n"  # duplicate
        + "_t_0_10\t4\t6\tDog\n"  # overlapping
        + "_t_0_10\t6\t7\tDog\n"  # touching, which is no fault
        + "_t_0_10\t9\t0\tSpeech\n"  # empty
        + "nobody_0_10\t0\t3\tCat\n"  # unknown
        + "val_0_10\t0\t3\tCar\n"
    )
    (tmp_path / "AVVP_eval_visual.csv").write_text(
        HEADER + "u_0_10\t0\t10\tCat\nu_0_10\t3\t3\tSpeech\n"
    )
    return tmp_path


def test_dense_labels_are_half_open_and_faults_mark_nothing(folder: Path) -> None:
    read = read_annotations(folder, "test")
    expected = np.zeros((2, 10, 2, 25), dtype=bool)
    expected[0, 2:7, 0, read.classes.index("Dog")] = True
    expected[1, :, 1, read.classes.index("Cat")] = True
    assert read.ids == ("_t_0_10", "u_0_10")
    assert read.events is not None
    assert read.events.dtype == np.bool_
    np.testing.assert_array_equal(read.events, expected)
    assert read.faults == {
        "decimal_id": 0,
        "empty_event": 2,
        "duplicate_row": 1,
        "overlapping_row": 1,
        "unknown_clip": 1,
    }


def test_train_has_weak_labels_only(folder: Path) -> None:
    read = read_annotations(folder, "train")
    assert read.events is None
    assert read.weak.dtype == np.float32
    assert [np.flatnonzero(row).tolist() for row in read.weak] == [[3], [0, 24]]
    assert read.faults["decimal_id"] == 1


def test_audio_version_chooses_the_file(folder: Path) -> None:
    with pytest.raises(DataError, match=r"2020.*AVVP_eval_audio\.orig2020\.csv is missing"):
        read_annotations(folder, "test", audio_version="2020")
    (folder / "AVVP_eval_audio.orig2020.csv").write_text(HEADER + "u_0_10\t0\t1\tCat\n")
    read = read_annotations(folder, "test", audio_version="2020")
    assert read.audio_version == "2020"
    assert read.events is not None
    assert read.events[:, :, 0].sum() == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("AVVP_test_pd.csv", "filename\tevent_labels\na\tDog,Acordion\n", r"line 2.*'Accordion'"),
        ("AVVP_test_pd.csv", "filename\tevent_labels\na\tDog\na\tDog\n", "line 3.*a is .* twice"),
        ("AVVP_test_pd.csv", "filename,event_labels\na,Dog\n", "no column 'filename'"),
        ("AVVP_eval_visual.csv", HEADER + "u_0_10\t0\t1\tcat\n", r"line 2.*'cat'.*'Cat'"),
        ("AVVP_eval_visual.csv", HEADER + "u_0_10\t0\t11\tCat\n", "line 2.*0 to 11.*10 snippets"),
        ("AVVP_eval_visual.csv", HEADER + "u_0_10\t-1\t2\tCat\n", "line 2.*-1 to 2"),
        ("AVVP_eval_visual.csv", HEADER + "u_0_10\t0.5\t2\tCat\n", "line 2.*whole seconds"),
        ("AVVP_eval_visual.csv", HEADER + "u_0_10\t0\t2\n", "line 2.*cut short"),
        ("AVVP_eval_visual.csv", "filename\tonset\tevent_labels\n", "no column 'offset'"),
    ],
)
def test_a_broken_file_is_named(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_annotations(folder, "test")
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["AVVP_test_pd.csv", "AVVP_eval_audio.csv"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=name):
        read_annotations(folder, "test")


TEXT = "filename\tevent_labels\n_t_0_10\tDog,Speech\nu_0_10\tCat\n"


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("Cat", "Cat,").encode(),
        TEXT.replace("Dog,Speech", "Dog, Speech").encode(),
        TEXT.replace("Cat", " Cat ").encode(),
        TEXT.replace("event_labels", "event_labels\tnote").replace("Cat", "Cat\tx").encode(),
        (TEXT + "\n\n").encode(),
        TEXT.encode().rstrip(b"\n"),
    ],
    ids=["mark", "crlf", "comma", "space", "spaces", "column", "blank lines", "no last line end"],
)
def test_other_programs_write_the_same_labels(folder: Path, content: bytes) -> None:
    expected = read_annotations(folder, "test")
    (folder / "AVVP_test_pd.csv").write_bytes(content)
    read = read_annotations(folder, "test")
    assert read.ids == expected.ids
    np.testing.assert_array_equal(read.weak, expected.weak)


def test_seconds_may_have_decimals_that_are_zero(folder: Path) -> None:
    expected = read_annotations(folder, "test").events
    path = folder / "AVVP_eval_visual.csv"
    path.write_text(path.read_text().replace("\t0\t10\t", "\t0.0\t1e1\t"))
    found = read_annotations(folder, "test").events
    assert found is not None and expected is not None
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-le"),
        TEXT.replace("Cat", "Café").encode("latin-1"),
        b"\x1f\x8b\x08\x00binary",
        b"\xff" * 40,
        b"PK\x03\x04\xf0\x90",
    ],
    ids=["utf-16", "utf-16-le", "latin-1", "gzip", "bytes", "zip"],
)
def test_what_is_no_text_is_said_to_be_none(folder: Path, content: bytes) -> None:
    path = folder / "AVVP_test_pd.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is no text in UTF-8") as caught:
        read_annotations(folder, "test")
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_unknown_split_and_version_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"'eval'.*train, val, test"):
        read_annotations(folder, "eval")
    with pytest.raises(DataError, match=r"'2021'.*2024, 2020"):
        read_annotations(folder, "test", audio_version="2021")


@pytest.mark.shared
@pytest.mark.parametrize(("version", "unknown"), [("2024", 25), ("2020", 28)])
def test_llp_as_published(shared: Path, version: str, unknown: int) -> None:
    read = read_annotations(shared / "llp", "test", audio_version=version)
    assert read.weak.shape == (1200, 25)
    assert read.events is not None
    assert read.events.shape == (1200, 10, 2, 25)
    assert read.faults == {
        "decimal_id": 0,
        "empty_event": 6,
        "duplicate_row": 8,
        "overlapping_row": 14,
        "unknown_clip": unknown,
    }


@pytest.mark.shared
def test_audio_versions_differ_in_two_test_clips(shared: Path) -> None:
    new, old = (
        read_annotations(shared / "llp", "test", audio_version=version).events
        for version in ("2024", "2020")
    )
    assert new is not None
    assert old is not None
    assert (new != old).any(axis=(1, 2, 3)).sum() == 2


@pytest.mark.shared
@pytest.mark.parametrize(("split", "clips", "decimals"), [("train", 10000, 5), ("val", 649, 0)])
def test_llp_split_sizes(shared: Path, split: str, clips: int, decimals: int) -> None:
    read = read_annotations(shared / "llp", split)
    assert len(read.ids) == len(read.weak) == clips
    assert (read.weak.sum(axis=1) >= 1).all()
    assert read.faults["decimal_id"] == decimals
