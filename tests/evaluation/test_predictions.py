"""Prediction files: what is accepted, what is wrong with the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.annotations.llp import Annotations, read_annotations
from avvp_dist.errors import DataError
from avvp_dist.evaluation.predictions import Predictions, read_threshold, report
from avvp_dist.evaluation.scores import decide, score, score_one_modality, summarise

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def annotations(features: Path) -> Annotations:
    return read_annotations(features, "val")


@pytest.fixture
def arrays(annotations: Annotations) -> dict[str, Any]:
    clips = len(annotations.ids)
    return {
        "filenames": np.array(annotations.ids),
        "frame_prob": RNG.random((clips, 10, 2, 25), np.float32),
        "video_prob": RNG.random((clips, 25), np.float32),
        "modality_prob": RNG.random((clips, 2, 25), np.float32),
    }


def written(arrays: dict[str, Any], folder: Path) -> Path:
    np.savez(folder / "p.npz", **arrays)
    return folder / "p.npz"


def test_a_saved_file_reads_back(arrays: dict[str, Any], tmp_path: Path) -> None:
    first = Predictions.load(written(arrays, tmp_path))
    first.save(tmp_path / "again.npz")
    again = Predictions.load(tmp_path / "again.npz")
    assert again.ids == first.ids
    for name in ("frame_prob", "video_prob", "modality_prob"):
        assert np.array_equal(getattr(again, name), arrays[name])


@pytest.mark.parametrize(
    ("name", "maximum"), [("frame_prob", 1.0), ("video_prob", 2.0), ("modality_prob", 1.0)]
)
def test_each_probability_has_the_bound_of_its_pooling(
    name: str, maximum: float, arrays: dict[str, Any], tmp_path: Path
) -> None:
    arrays[name].flat[0] = maximum + 1e-6  # a sum of float32 softmax weights
    assert getattr(Predictions.load(written(arrays, tmp_path)), name).flat[0] >= maximum
    arrays[name].flat[0] = maximum + 0.01
    with pytest.raises(DataError, match=f"{name} of clip .* is not a probability"):
        Predictions.load(written(arrays, tmp_path))


def test_any_order_and_more_clips_score_the_same(
    arrays: dict[str, Any], annotations: Annotations, tmp_path: Path
) -> None:
    path = written(arrays, tmp_path)
    expected = report(
        [Predictions.load(path).ordered(annotations, path)], annotations, "video", 0.5
    )
    mixed = {name: np.concatenate([a[::-1], a[:1]]) for name, a in arrays.items()}
    mixed["filenames"] = np.array([*annotations.ids[::-1], "somebody else"])
    path = written(mixed, tmp_path)
    mixed_report = report(
        [Predictions.load(path).ordered(annotations, path)], annotations, "video", 0.5
    )
    assert mixed_report == expected
    assert annotations.events is not None
    predicted = decide(arrays["frame_prob"], arrays["video_prob"])
    assert expected.scores == score(predicted, annotations.events)
    assert expected.audio_annotations == "2024"
    assert "audio annotations 2024" in expected.table()


WRONG: dict[str, tuple[Any, str]] = {
    "no frame_prob": (lambda a: a.pop("frame_prob"), "has no array frame_prob"),
    "frames of three axes": (
        lambda a: a.update(frame_prob=a["frame_prob"][:, :, 0]),
        r"frame_prob is \[24, 10, 25\], expected \[N, T, 2, C\]",
    ),
    "video of other classes": (
        lambda a: a.update(video_prob=a["video_prob"][:, :3]),
        r"video_prob is \[24, 3\], expected \[24, 25\]",
    ),
    "NaN": (
        lambda a: a["frame_prob"].__setitem__((3, 0, 0, 0), np.nan),
        r"frame_prob of clip SIMva000003_0_10 is not a probability",
    ),
    "logits": (lambda a: a["video_prob"].__setitem__((2, 0), 7.5), "clip SIMva000002_0_10"),
    "labels": (lambda a: a.update(video_prob=np.ones((24, 25), int)), "expected probabilities"),
    "a missing clip": (
        lambda a: a["filenames"].__setitem__(5, "x"),
        "lacks 1 of 24 val clips, first SIMva000005_0_10",
    ),
    "a doubled clip": (
        lambda a: a["filenames"].__setitem__(5, a["filenames"][4]),
        "clip SIMva000004_0_10 occurs twice",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_bad_file_is_told_what_is_wrong(
    fault: str, arrays: dict[str, Any], annotations: Annotations, tmp_path: Path
) -> None:
    spoil, message = WRONG[fault]
    spoil(arrays)
    path = written(arrays, tmp_path)
    with pytest.raises(DataError, match=message) as error:
        Predictions.load(path).ordered(annotations, path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_no_npz_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.npz").write_bytes(b"text")
    with pytest.raises(DataError, match=r"p\.npz is no whole npz file"):
        Predictions.load(tmp_path / "p.npz")


# Several seeds.


def loaded(arrays: dict[str, Any], annotations: Annotations, folder: Path) -> Predictions:
    path = written(arrays, folder)
    return Predictions.load(path).ordered(annotations, path)


def test_several_seeds_are_reported_by_mean_and_standard_deviation(
    arrays: dict[str, Any], annotations: Annotations, tmp_path: Path
) -> None:
    first = loaded(arrays, annotations, tmp_path)
    arrays["frame_prob"] = RNG.random(arrays["frame_prob"].shape, np.float32)
    second = loaded(arrays, annotations, tmp_path)
    alone = report([first], annotations, "video", 0.5)
    both = report([first, second], annotations, "video", 0.5)
    assert set(both.to_json()) - set(alone.to_json()) == {"standard_deviations"}
    assert (alone.seeds, both.seeds) == (1, 2)
    truth = annotations.events
    assert truth is not None
    masks = [one.decided("video", 0.5) for one in (first, second)]
    summary = summarise(masks, truth)
    assert both.scores == {key: one.mean for key, one in summary.items()}
    spreads = {key: one.standard_deviation for key, one in summary.items()}
    assert both.standard_deviations == spreads
    assert both.intervals_95 == {key: (one.low, one.high) for key, one in summary.items()}
    for key, value in both.one_modality_scores.items():
        scores = [score_one_modality(mask, truth)[key] for mask in masks]
        assert value == pytest.approx(sum(scores) / 2)
    cell = f"{both.scores['segment_audio']:.1f} ± {spreads['segment_audio']:.1f}"
    assert cell in both.table()
    assert "mean ± standard deviation of 2 files" in both.table() and "±" not in alone.table()


# Thresholds.


def test_a_threshold_is_a_number_or_a_file_of_one_per_class(tmp_path: Path) -> None:
    assert read_threshold("0.25", 25) == 0.25
    limits = RNG.random((2, 25))
    np.save(tmp_path / "limits.npy", limits)
    np.testing.assert_array_equal(read_threshold(str(tmp_path / "limits.npy"), 25), limits)


def test_a_class_has_its_own_threshold(
    arrays: dict[str, Any], annotations: Annotations, tmp_path: Path
) -> None:
    found = loaded(arrays, annotations, tmp_path)
    limits = np.full((2, 25), 0.5)
    limits[1, 7] = 0.9
    np.save(tmp_path / "limits.npy", limits)
    for rule in ("video", "modality"):
        before = found.decided(rule, 0.5)
        after = found.decided(rule, read_threshold(str(tmp_path / "limits.npy"), 25))
        changed = np.zeros((2, 25), bool)
        changed[1, 7] = True
        assert np.array_equal((before != after).any((0, 1)), changed)
        assert np.array_equal(after[:, :, 1, 7], found.decided(rule, 0.9)[:, :, 1, 7])


SPOILT: dict[str, tuple[Any, str]] = {
    "other classes": (np.full((2, 24), 0.5), r"is \[2, 24\], expected finite \[2, 25\]"),
    "one row": (np.full(25, 0.5), r"is \[25\], expected"),
    "nan": (np.where(np.arange(50).reshape(2, 25) == 3, np.nan, 0.5), "expected finite"),
    "infinite": (np.full((2, 25), np.inf), "expected finite"),
    "words": (np.full((2, 25), "half"), "limits.npy"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_wrong_threshold_file_is_told_what_is_wrong(fault: str, tmp_path: Path) -> None:
    spoilt, message = SPOILT[fault]
    np.save(tmp_path / "limits.npy", spoilt)
    with pytest.raises(DataError, match=message) as error:
        read_threshold(str(tmp_path / "limits.npy"), 25)
    assert "limits.npy" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["half", "nan", "inf", "-inf", "", "."])
def test_what_is_neither_number_nor_file_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="threshold") as error:
        read_threshold(text, 25)
    assert "\n" not in str(error.value)


def test_a_threshold_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "limits.npz", limits=np.full((2, 25), 0.5))
    with pytest.raises(DataError, match=r"limits\.npz"):
        read_threshold(str(tmp_path / "limits.npz"), 25)
