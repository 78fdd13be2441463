"""The grounding job: its labels, its summary, and what it does after a failure.

Its tasks run in this process; tests/cluster/test_grounding.py has them on Ray.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from omegaconf import OmegaConf

from avvp_dist.config import CalibrateConfig, GroundConfig
from avvp_dist.errors import DataError
from avvp_dist.grounding.calibrate import calibrate
from avvp_dist.grounding.components import (
    components,
    join_strength,
    silent_snippets,
    similarity,
)
from avvp_dist.grounding.job import ground
from avvp_dist.grounding.thresholds import ThresholdsFile
from avvp_dist.grounding.version import Grounding
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet

VERSION = "tested"


@pytest.fixture(scope="module")
def calibrated(packed: dict[str, ShardSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the train shard set with its thresholds, without a grounding."""
    folder = tmp_path_factory.mktemp("job") / "calibrated"
    shutil.copytree(packed["train"].folder, folder, ignore=shutil.ignore_patterns("grounding"))
    config = CalibrateConfig(shards=str(folder), false_link_rate=0.05, workers=1)
    config.tracking.enabled = config.tracking.figures = False
    calibrate(config)
    return folder


@pytest.fixture
def train(calibrated: Path, tmp_path: Path) -> Path:
    """A copy of `calibrated` that a test may change."""
    return shutil.copytree(calibrated, tmp_path / "train")


@pytest.fixture(scope="module")
def grounded(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `calibrated` with its grounding."""
    folder = tmp_path_factory.mktemp("job") / "grounded"
    shutil.copytree(calibrated, folder)
    asked = config(folder)
    asked.tracking.figures = True
    ground(asked)
    return folder


def config(folder: Path, **keys: Any) -> GroundConfig:
    made = GroundConfig(shards=str(folder), **{"version": VERSION, "workers": 1, **keys})
    made.tracking.enabled = made.tracking.figures = False
    return made


def labels(folder: Path) -> dict[str, bytes]:
    """All files that the tasks write, by name."""
    files = sorted((folder / "grounding" / VERSION).glob("shard-*"))
    return {path.name: path.read_bytes() for path in files}


def thresholds(folder: Path) -> dict[str, float]:
    return ThresholdsFile.read(folder / "thresholds.yaml").thresholds


def components_of(
    folder: Path, rule: str, reference: NDArray[np.floating] | None = None
) -> NDArray[np.uint8]:
    shards = ShardSet(folder)
    streams = shards.gather(np.arange(len(shards)))
    silent = None if reference is None else silent_snippets(streams["audio"], reference, 0.9)
    limits = thresholds(folder)
    cosines = {name: similarity(streams[name]).cosine for name in limits}
    return components(join_strength(cosines, limits, rule, silent))


def test_labels_are_the_components_of_every_clip(grounded: Path) -> None:
    grounding = Grounding(ShardSet(grounded))
    expected = components_of(grounded, "or")
    np.testing.assert_array_equal(grounding.components, expected)
    sizes = [len(set(ids)) for ids in expected.tolist()]
    assert 1 < np.mean(sizes) < 10
    assert grounding.summary.counts["clips"] == 96
    figures = grounding.summary.figures
    assert figures["components_per_clip"] == pytest.approx(np.mean(sizes))
    assert figures["one_component_share"] == pytest.approx(sizes.count(1) / 96)
    first, second = np.triu_indices(10, 1)
    positive = (expected[:, first] == expected[:, second]).mean()
    assert figures["positive_pair_share"] == pytest.approx(positive)
    assert grounding.summary.counts["snippets"] == 960
    assert grounding.thresholds == thresholds(grounded)
    figure = Path(grounding.place) / "components.png"
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_float32_grounds_what_is_too_small_for_float16(calibrated: Path, tmp_path: Path) -> None:
    """A power of two changes no cosine, so the labels are equal."""
    shards = ShardSet(calibrated)
    streams = shards.gather(np.arange(len(shards)))
    tiny = [
        Clip(id, {name: x[row].astype(np.float32) * 2.0**-40 for name, x in streams.items()})
        for row, id in enumerate(shards.ids)
    ]
    folder = tmp_path / "tiny"
    write_shard_set(tiny, folder, dtype="float32", extractor=shards.extractor)
    shutil.copy(calibrated / "thresholds.yaml", folder)
    ground(config(folder))
    expected = components_of(calibrated, "or")
    np.testing.assert_array_equal(Grounding(ShardSet(folder)).components, expected)


def test_what_was_calibrated_is_grounded_without_a_note(
    train: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ground(config(train))
    assert "was calibrated for" not in capsys.readouterr().out


def test_a_second_run_redoes_nothing(grounded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # it needs no cluster either
    folder = grounded / "grounding" / VERSION
    before = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    assert ground(config(grounded)) == folder
    assert len(before) == 6
    assert {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")} == before


@pytest.mark.parametrize("kind", ["json", "npy"])
def test_only_a_lost_shard_is_redone(grounded: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(grounded, tmp_path / "train") / "grounding" / VERSION
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    (folder / f"shard-000001.{kind}").unlink()
    ground(config(tmp_path / "train"))
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    redone = {name for name in before if after[name] != before[name]}
    assert redone == {"shard-000001.json", "shard-000001.npy"}
    assert labels(tmp_path / "train") == labels(grounded)


def test_the_rule_of_the_authors_code_with_silence(train: Path, tmp_path: Path) -> None:
    shards = ShardSet(train)
    reference = shards.gather(np.array([0]))["audio"][0, 0].astype(np.float32)
    np.save(tmp_path / "silent.npy", reference)
    silence = {"silent_audio": str(tmp_path / "silent.npy"), "silent_similarity": 0.9}
    folder = ground(config(train, rule="and", version="", **silence))
    grounding = Grounding(shards)
    assert folder.name.startswith("and-audio")
    expected = components_of(train, "and", reference)
    np.testing.assert_array_equal(grounding.components, expected)
    assert grounding.summary.counts["silent"] >= 1


def test_a_damaged_clip_is_named_by_its_task(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clips = [Clip(f"c{n}", {"audio": rng.random((3, 4)) + 1}) for n in range(4)]
    shards = write_shard_set(clips, tmp_path, clips_per_shard=2)
    wreck(shards, 3)
    write_thresholds(tmp_path, {"audio": 0.9}, "")
    with pytest.raises(DataError, match=r"shard-000001\.tar: clip c3: audio is not finite"):
        ground(config(tmp_path, verify="size"))
    with pytest.raises(DataError, match=r"shard-000001\.tar has another SHA-256"):
        ground(config(tmp_path))
    assert not (tmp_path / "grounding" / VERSION / "grounding.json").exists()


def test_an_old_summary_does_not_vouch_for_labels_half_made_anew(
    grounded: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(grounded, tmp_path / "again")
    wreck(ShardSet(folder), 80)
    write_thresholds(folder, {"audio": 0.1, "visual": 0.1}, "simulated")
    with pytest.raises(DataError, match=r"shard-000002\.tar has another SHA-256"):
        ground(config(folder))
    with pytest.raises(DataError, match="no finished grounding"):
        Grounding(ShardSet(folder), folder / "grounding" / VERSION)


def wreck(shards: ShardSet, clip: int) -> None:
    """Put a NaN into a clip's audio."""
    shard = shards.shards[int(shards.owners(np.array([clip]))[0])]
    with (shards.folder / shard.name).open("r+b") as file:
        file.seek(int(shards.index["offsets"][clip, 0]))
        file.write(np.array([np.nan], np.float16).tobytes())


def write_thresholds(folder: Path, limits: dict[str, float], extractor: str) -> None:
    chosen = OmegaConf.create({"thresholds": limits, "extractor": extractor})
    OmegaConf.save(chosen, folder / "thresholds.yaml")


def test_a_missing_shard_is_named(train: Path) -> None:
    (train / "shard-000002.tar").unlink()
    with pytest.raises(DataError, match=r"train/shard-000002\.tar is missing"):
        ground(config(train))
