"""Files of refined labels: read back for any clips, refused when they do not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.annotations.refined import load_refined, save_refined
from avvp_dist.errors import DataError
from avvp_dist.shards.schema import LLP_CLASSES

IDS = ("a", "-b.0_10", "c")
WEAK = np.array([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1]], bool)
LABELS = np.array(
    [
        [[1, 0, 0, 0], [0, 1, 0, 0]],
        [[0, 1, 1, 0], [0, 0, 1, 1]],
        [[0, 0, 0, 0], [0, 0, 0, 1]],
    ],
    bool,
)


def test_labels_come_back(tmp_path: Path) -> None:
    save_refined(tmp_path / "new" / "labels.npz", IDS, LABELS)
    found = load_refined(tmp_path / "new" / "labels.npz", IDS, WEAK)
    assert found.dtype == bool
    assert np.array_equal(found, LABELS)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["labels.npz"]


@pytest.mark.parametrize("rows", [[2, 0, 1], [2], [1, 0], []])
def test_clips_are_found_by_their_id(tmp_path: Path, rows: list[int]) -> None:
    save_refined(tmp_path / "labels.npz", IDS, LABELS)
    found = load_refined(tmp_path / "labels.npz", [IDS[row] for row in rows], WEAK[rows])
    assert np.array_equal(found, LABELS[rows])


def test_labels_of_numbers_are_read_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "labels.npz", filenames=IDS, labels=LABELS.astype(np.float32))
    assert np.array_equal(load_refined(tmp_path / "labels.npz", IDS, WEAK), LABELS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "is no file of refined labels: .*labels"),
        ({"filenames": None}, "is no file of refined labels: .*filenames"),
        ({"labels": LABELS[:2]}, r"labels is \[2, 2, 4\], expected \[3, 2, 4\]"),
        ({"labels": LABELS[:, 0]}, r"labels is \[3, 4\], expected \[3, 2, 4\]"),
        ({"labels": LABELS[..., :3]}, r"labels is \[3, 2, 3\], expected \[3, 2, 4\]"),
        ({"filenames": np.array(["a", "a", "c"])}, "clip a occurs twice"),
        ({"filenames": np.array(["a", "x", "y"])}, "lacks 2 of 3 clips, first -b.0_10"),
        ({"labels": ~LABELS}, "clip a has a label .* not among its weak labels, 3 clips in all"),
    ],
)
def test_a_file_that_does_not_fit_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    arrays = {"filenames": np.array(IDS), "labels": LABELS, **changes}
    path = tmp_path / "labels.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}\b.*{message}"):
        load_refined(path, IDS, WEAK)


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x03\x04 torn"])
def test_a_file_that_is_no_npz_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "labels.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(str(path))} is no file of refined labels"):
        load_refined(path, IDS, WEAK)


def test_one_label_too_many_is_enough(tmp_path: Path) -> None:
    added = LABELS.copy()
    added[1, 1, 0] = True
    save_refined(tmp_path / "labels.npz", IDS, added)
    with pytest.raises(DataError, match=r"clip -b\.0_10 has a label .*, 1 clips in all"):
        load_refined(tmp_path / "labels.npz", IDS, WEAK)
    # The weak labels of the clips that are asked for count, no others.
    load_refined(tmp_path / "labels.npz", ["c", "a"], WEAK[[2, 0]])


@pytest.mark.shared
def test_labels_that_others_refined(shared: Path, tmp_path: Path) -> None:
    train = read_annotations(shared / "llp", "train")
    weak = train.weak > 0
    labels = np.stack([weak, weak], 1)
    with np.load(shared / "llp" / "ma_refined_labels.npz") as dropped:
        for modality, name in enumerate(("a_idx", "v_idx")):
            rows, classes = dropped[name].T
            assert labels[rows, modality, classes].all()  # every dropped label was there
            labels[rows, modality, classes] = False
    save_refined(tmp_path / "labels.npz", train.ids, labels)
    found = load_refined(tmp_path / "labels.npz", train.ids, weak)
    gone = weak[:, None] & ~found
    assert weak.sum() == 16_057
    assert gone.sum((0, 2)).tolist() == [1_583, 3_509]
    assert gone[:, 1, LLP_CLASSES.index("Speech")].sum() == 3_172


@pytest.mark.parametrize("damage", ["flipped", "array", "scalar"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "labels.npz"
    rng = np.random.default_rng(0)
    weak = rng.random((300, 25)) < 0.2
    ids = [f"clip {n}" for n in range(300)]
    save_refined(path, ids, np.stack([weak, weak], 1) & (rng.random((300, 2, 25)) < 0.7))
    whole = path.read_bytes()
    if damage == "array":
        np.save(tmp_path / "labels.npy", weak)
        (tmp_path / "labels.npy").rename(path)
    elif damage == "scalar":
        np.savez(path, filenames=np.array("a"), labels=LABELS)
    for at in range(0, len(whole), 17) if damage == "flipped" else [-1]:
        if at >= 0:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            load_refined(path, ids, weak)
        except DataError as error:
            assert str(path) in str(error)
        else:
            assert damage == "flipped"
