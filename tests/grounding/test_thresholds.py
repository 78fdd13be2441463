"""The file `thresholds.yaml`: read as it was written, and errors that name it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from avvp_dist.errors import ConfigError
from avvp_dist.grounding.thresholds import ThresholdsFile, write_thresholds


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "t.yaml"
    limits = {"visual": 0.9713, "audio": 1}
    joining = {"rule": "and", "silent_audio": "", "silent_similarity": 0.9, "hops": None, "n": 3}
    content = {"thresholds": limits, "extractor": "x", "joining": joining, "more": [1]}
    write_thresholds(path, content)
    read = ThresholdsFile.read(path)
    assert read == ThresholdsFile(limits, "x", joining)
    assert list(read.thresholds) == ["visual", "audio"]
    assert [path.name for path in path.parent.iterdir()] == ["t.yaml"]


def test_a_file_made_by_hand_needs_two_keys(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("extractor: ''\nthresholds: {audio: 0.5}\n")
    assert ThresholdsFile.read(path) == ThresholdsFile({"audio": 0.5}, "")


@pytest.mark.parametrize("name", ["0012", "no", "1e3", "2026_8_6", "null-", "True", "12:30", "ß"])
def test_names_are_text(name: str, tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(f"extractor: {name}\nthresholds: {{{name}: 5e-1}}\n", "utf-8")
    assert ThresholdsFile.read(path) == ThresholdsFile({name: 0.5}, name)
    write_thresholds(path, {"thresholds": {name: 0.5}, "extractor": name})
    assert ThresholdsFile.read(path) == ThresholdsFile({name: 0.5}, name)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_named(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("extractor: Größe\nthresholds: {audio: 0.5}\n", encoding)
    with pytest.raises(ConfigError, match=r"t\.yaml is not YAML: 'utf-8' codec"):
        ThresholdsFile.read(path)
    path.write_text("extractor: Größe\nthresholds: {audio: 0.5}\n", "utf-8-sig")
    assert ThresholdsFile.read(path).extractor == "Größe"


def test_a_missing_file_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"t\.yaml does not exist.*`avvp calibrate`"):
        ThresholdsFile.read(tmp_path / "t.yaml")


@pytest.mark.parametrize("limits", [{}, {"audio": "high"}, {"audio": ".nan"}, [0.9], None])
def test_thresholds_that_are_no_numbers_are_named(tmp_path: Path, limits: Any) -> None:
    write_thresholds(tmp_path / "t.yaml", {"thresholds": limits, "extractor": "x"})
    with pytest.raises(ConfigError, match=r"t\.yaml needs a number for each stream"):
        ThresholdsFile.read(tmp_path / "t.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thresholds: {audio: 0.5}", "is no file of `avvp calibrate`"),
        ("- a", "is no file of `avvp calibrate`"),
        ("a: [", "is not YAML"),
        ("extractor: x\nthresholds: {audio: 0.5}\njoining: or", "joining holds no keys"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"thresholds: {path}:? {message}"):
        ThresholdsFile.read(path)
