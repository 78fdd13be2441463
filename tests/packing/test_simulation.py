"""The simulated corpus: repeatable, with correct labels, and with classes that can be learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.config import SimulateConfig
from avvp_dist.errors import DataError
from avvp_dist.packing.simulation import simulate

SIZES = {"train": 96, "val": 24, "test": 24}
"""Number of clips in the corpus of conftest.py."""


def small(out: Path, **changes: int | float | str) -> Path:
    sizes = {"train": 5, "val": 4, "test": 3, "audio_dim": 6, "visual_dim": 7}
    return simulate(SimulateConfig(out=str(out), **(sizes | changes)))


def arrays(folder: Path) -> dict[str, bytes]:
    """Bytes of all arrays of a corpus."""
    found = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            found |= {f"{path.name}/{name}": file[name].tobytes() for name in file.files}
    return found


def tables(folder: Path) -> dict[str, bytes]:
    """Bytes of all annotation files of a corpus."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


def test_the_same_seed_gives_the_same_corpus(tmp_path: Path) -> None:
    one, two = small(tmp_path / "one", seed=3), small(tmp_path / "two", seed=3)
    assert len(arrays(one)) == 9
    assert len(tables(one)) == 5
    assert arrays(one) == arrays(two)
    assert tables(one) == tables(two)


def test_another_seed_gives_another_corpus(tmp_path: Path) -> None:
    one, two = small(tmp_path / "one", seed=3), small(tmp_path / "two", seed=4)
    assert tables(one) != tables(two)
    for name, data in arrays(one).items():
        assert (arrays(two)[name] == data) == name.endswith("/filenames")


@pytest.mark.parametrize("split", SIZES)
def test_shapes_and_ids(features: Path, split: str) -> None:
    with np.load(features / f"features_{split}.npz", allow_pickle=False) as file:
        assert set(file.files) == {"filenames", "audio", "visual"}
        assert file["audio"].shape == (SIZES[split], 10, 12)
        assert file["visual"].shape == (SIZES[split], 10, 16)
        for name in ("audio", "visual"):
            assert file[name].dtype == np.float16
            assert np.isfinite(file[name]).all()
            assert file[name].min() == 0  # rectified, as a backbone's output
        ids = tuple(file["filenames"])
    assert len(set(ids)) == SIZES[split]
    assert read_annotations(features, split).ids == ids


@pytest.mark.parametrize("split", ["val", "test"])
def test_weak_labels_are_the_classes_of_the_events(features: Path, split: str) -> None:
    read = read_annotations(features, split)
    assert read.events is not None
    np.testing.assert_array_equal(read.events.any((1, 2)), read.weak > 0)
    assert not any(read.faults.values())


def test_clips_hold_one_to_three_events_of_every_kind(features: Path) -> None:
    read = read_annotations(features, "test")
    assert read.events is not None
    assert set(read.weak.sum(1)) <= {1, 2, 3}
    heard, seen = read.events.any(1).transpose(1, 0, 2)
    assert (heard & seen).any()
    assert (heard & ~seen).any()
    assert (seen & ~heard).any()
    same = (read.events[:, :, 0] == read.events[:, :, 1]).all(1)
    assert (heard & seen & same).any()
    assert (heard & seen & ~same).any()


@pytest.mark.parametrize(("modality", "name"), [(0, "audio"), (1, "visual")])
def test_snippets_of_one_class_are_similar(features: Path, modality: int, name: str) -> None:
    read = read_annotations(features, "test")
    assert read.events is not None
    with np.load(features / "features_test.npz", allow_pickle=False) as file:
        snippets = file[name].astype(np.float64).reshape(240, -1)
    snippets -= snippets.mean(0)
    snippets /= np.linalg.norm(snippets, axis=1, keepdims=True)
    active = read.events[:, :, modality].reshape(240, -1).astype(int)
    clip = np.arange(240) // 10
    several = (clip[:, None] != clip) & active.any(1)[:, None] & active.any(1)
    shared = active @ active.T > 0
    alike = snippets @ snippets.T
    assert alike[several & shared].mean() > alike[several & ~shared].mean() + 0.1


def assert_ids_are_in_csv_order(out: Path, annotations: Path) -> None:
    for split in SIZES:
        with np.load(out / f"features_{split}.npz", allow_pickle=False) as file:
            ids = tuple(file["filenames"])
            assert len(ids) == len(file["audio"]) == len(file["visual"])
        assert ids == read_annotations(annotations, split).ids


def assert_features_change_with_the_events(out: Path, annotations: Path) -> None:
    """Assert, without noise, that snippets of a clip are equal if and only if their events are."""
    for split in ("val", "test"):
        events = read_annotations(annotations, split).events
        assert events is not None
        with np.load(out / f"features_{split}.npz", allow_pickle=False) as file:
            for modality, name in enumerate(("audio", "visual")):
                alike, same = (
                    (each[:, :, None] == each[:, None]).all(-1)
                    for each in (file[name], events[:, :, modality])
                )
                np.testing.assert_array_equal(alike, same)


def test_clips_of_given_annotations(features: Path, tmp_path: Path) -> None:
    out = small(tmp_path / "out", annotations=str(features), noise=0, seed=9)
    assert_ids_are_in_csv_order(out, features)
    assert_features_change_with_the_events(out, features)
    assert tables(out) == {}
    again = small(tmp_path / "again", annotations=str(features), noise=0, seed=9)
    assert arrays(again) == arrays(out)


def test_broken_annotations_are_refused_before_anything_is_written(
    features: Path, tmp_path: Path
) -> None:
    for table in features.glob("*.csv"):
        (tmp_path / table.name).write_bytes(table.read_bytes())
    (tmp_path / "AVVP_eval_visual.csv").unlink()
    with pytest.raises(DataError, match=r"AVVP_eval_visual\.csv"):
        small(tmp_path / "out", annotations=str(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def llp(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features for the real clips of LLP, without noise."""
    out = tmp_path_factory.mktemp("llp")
    return small(out, annotations=str(shared / "llp"), audio_dim=24, visual_dim=32, noise=0)


@pytest.mark.shared
def test_clips_of_llp(llp: Path, shared: Path, tmp_path: Path) -> None:
    assert_ids_are_in_csv_order(llp, shared / "llp")
    assert_features_change_with_the_events(llp, shared / "llp")
    with np.load(llp / "features_train.npz", allow_pickle=False) as file:
        assert "AP0061o0Nvk_101.8_111.8" in file["filenames"]
        assert len(file["filenames"]) == 10000
    again = small(tmp_path, annotations=str(shared / "llp"), audio_dim=24, visual_dim=32, noise=0)
    assert arrays(again) == arrays(llp)


@pytest.mark.shared
@pytest.mark.parametrize(("modality", "odds"), [(0, 0.5 + 0.3), (1, 0.5 + 0.2)])
def test_train_clips_of_llp_hold_their_weak_labels_only(
    llp: Path, shared: Path, modality: int, odds: float
) -> None:
    name = ("audio", "visual")[modality]
    events = read_annotations(shared / "llp", "test").events
    weak = read_annotations(shared / "llp", "train").weak > 0
    assert events is not None
    with np.load(llp / "features_test.npz", allow_pickle=False) as file:
        test = file[name].astype(np.float64).reshape(12000, -1)
    with np.load(llp / "features_train.npz", allow_pickle=False) as file:
        train = file[name].astype(np.float64).mean(1)
    # Estimate the vector that each class adds to a snippet from the dense labels, and then how much
    # of it each train clip holds.
    active = np.concatenate([events[:, :, modality].reshape(12000, -1), np.ones((12000, 1))], 1)
    *directions, background = np.linalg.lstsq(active, test, rcond=None)[0]
    held = (train - background) @ np.linalg.pinv(np.stack(directions))
    # An event lasts 6 of 10 snippets on average.
    assert held[weak].mean() == pytest.approx(0.6 * odds, abs=0.05)
    assert held[~weak].mean() == pytest.approx(0, abs=0.02)
