"""tools/score.py: the official numbers for anyone's file, one line for a bad one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.evaluation.scores import score, summarise


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "tools" / "score.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.shared
def test_official_numbers_exactly(root: Path, shared: Path, tmp_path: Path) -> None:
    recipes = json.loads((shared / "llp" / "official_scores.json").read_text())["results"]
    for recipe in [r for r in recipes if "seed" in r]:
        annotations = read_annotations(shared / "llp", recipe["split"])
        rng = np.random.default_rng(recipe["seed"])
        frame = rng.random((len(annotations.ids), 10, 2, 25), dtype=np.float32)
        video = rng.random((len(annotations.ids), 25), dtype=np.float32)
        video *= np.float32(recipe["video_scale"])
        ids = np.array(annotations.ids)
        np.savez(tmp_path / "p.npz", filenames=ids, frame_prob=frame, video_prob=video)
        version = ["--audio-annotations", recipe["audio_annotations"]]
        data = ["--predictions", str(tmp_path / "p.npz"), "--annotations", str(shared / "llp")]
        out = ["--split", recipe["split"], "--json", str(tmp_path / "out.json")]
        done = run(root, *data, *version, *out)
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "out.json").read_text())
        assert found["scores"] == recipe["scores"]
        assert found["audio_annotations"] == recipe["audio_annotations"]
        assert f"audio annotations {recipe['audio_annotations']}" in done.stdout


def test_a_bad_file_is_one_line(root: Path, features: Path, tmp_path: Path) -> None:
    (tmp_path / "p.npz").write_bytes(b"text")
    data = ["--predictions", str(tmp_path / "p.npz"), "--annotations", str(features)]
    done = run(root, *data)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "p.npz" in line


@pytest.fixture(scope="module")
def seeds(features: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Prediction files of the test split, as three seeds might leave them."""
    folder, rng = tmp_path_factory.mktemp("seeds"), np.random.default_rng(0)
    ids = read_annotations(features, "test").ids
    paths = [folder / f"seed{number}.npz" for number in range(3)]
    for path in paths:
        frame, video = rng.random((24, 10, 2, 25), np.float32), rng.random((24, 25), np.float32)
        Predictions(ids, frame, video).save(path)
    return paths


def scored(
    root: Path, features: Path, predictions: list[Path], out: Path, *more: str
) -> tuple[dict[str, Any], str]:
    """What tools/score.py writes as JSON, and what it prints."""
    data = ["--annotations", str(features), "--json", str(out), *more]
    done = run(root, "--predictions", *map(str, predictions), *data)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_several_files_are_the_seeds_of_one_parser(
    root: Path, features: Path, seeds: list[Path], tmp_path: Path
) -> None:
    found, printed = scored(root, features, seeds, tmp_path / "out.json")
    truth = read_annotations(features, "test").events
    assert truth is not None
    masks = [Predictions.load(path).decided("video", 0.5) for path in seeds]
    summary = summarise(masks, truth)
    assert found["seeds"] == 3
    assert found["scores"] == {key: one.mean for key, one in summary.items()}
    spreads = {key: one.standard_deviation for key, one in summary.items()}
    assert found["standard_deviations"] == spreads
    for level, line in zip(("segment", "event"), printed.splitlines()[2:4], strict=True):
        name, *cells = line.replace(" ± ", "±").split()
        keys = [key for key in summary if key.startswith(level)]
        assert name == level
        assert cells == [f"{summary[key].mean:.1f}±{spreads[key]:.1f}" for key in keys]


def test_one_file_has_no_standard_deviation(
    root: Path, features: Path, seeds: list[Path], tmp_path: Path
) -> None:
    found, printed = scored(root, features, seeds[:1], tmp_path / "out.json")
    assert set(found) == {
        "split",
        "audio_annotations",
        "rule",
        "threshold",
        "clips",
        "annotation_faults",
        "seeds",
        "scores",
        "one_modality_scores",
        "intervals_95",
    }
    assert (found["seeds"], found["threshold"]) == (1, 0.5)
    assert "±" not in printed


def test_thresholds_are_a_number_or_a_file(
    root: Path, features: Path, seeds: list[Path], tmp_path: Path
) -> None:
    limits = np.full((2, 25), 0.7)
    limits[0, 3] = 0.2
    np.save(tmp_path / "limits.npy", limits)
    truth = read_annotations(features, "test").events
    assert truth is not None
    given: list[tuple[str, Any]] = [("0.7", 0.7), (str(tmp_path / "limits.npy"), limits)]
    for text, threshold in given:
        out = tmp_path / "out.json"
        found, _ = scored(root, features, seeds[:1], out, "--threshold", text)
        mask = Predictions.load(seeds[0]).decided("video", threshold)
        assert found["scores"] == score(mask, truth)
        assert np.array_equal(found["threshold"], threshold)


@pytest.mark.parametrize("wrong", ["nobody.npy", "nan", "shape"])
def test_a_wrong_threshold_is_one_line(
    wrong: str, root: Path, features: Path, seeds: list[Path], tmp_path: Path
) -> None:
    if wrong == "shape":
        wrong = str(tmp_path / "limits.npy")
        np.save(wrong, np.full((25, 2), 0.5))
    data = ["--predictions", str(seeds[0]), "--annotations", str(features)]
    done = run(root, *data, "--threshold", wrong)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and f"threshold {wrong}" in line
