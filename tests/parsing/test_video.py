"""The stage `avvp parse-video`: videos into timelines, as their shard set would give them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.config import (
    ExtractConfig,
    ParseConfig,
    ParserConfig,
    ParseVideoConfig,
    TrackingConfig,
)
from avvp_dist.errors import CheckpointError, ConfigError, DataError
from avvp_dist.extraction.job import extract
from avvp_dist.models.export import build_parser, save_model
from avvp_dist.models.specification import ParserSpec
from avvp_dist.parsing.job import parse
from avvp_dist.parsing.timeline import Timeline
from avvp_dist.parsing.video import find_videos, parse_videos
from tests.extraction.small_backbones import LIGHT, LOUDNESS
from tests.features.made import make

OFF = TrackingConfig(enabled=False)
SPEC = ParserSpec(
    parser=ParserConfig(width=16),
    dims={"audio": 3, "visual": 4},
    snippets=10,
    classes=["Speech", "Dog", "Cat"],
    extractor="light 00000000, loudness 11111111; decoding 1",
    manifest="none",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parser with random weights."""
    folder = tmp_path_factory.mktemp("parser") / "model"
    save_model(folder, build_parser(SPEC).state_dict(), SPEC)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of 10 s, one of 23 s, a mute one of 4 s, and one without pictures."""
    folder = tmp_path_factory.mktemp("videos")
    make(folder / "plain.mp4")
    make(folder / "long.mkv", length=23, seconds=(1, 12, 21))
    make(folder / "mute.mp4", length=4, sound=False)
    make(folder / "sound.wav", pictures=False)
    return folder


def run(model: Path, out: Path, *videos: Path, **keys: Any) -> dict[str, Timeline]:
    given = {"backbones": [LIGHT, LOUDNESS], "threshold": "0.5", **keys}
    parse_videos(
        ParseVideoConfig(
            videos=[str(one) for one in videos],
            parser=str(model),
            out=str(out),
            tracking=OFF,
            **given,
        )
    )
    return timelines(out)


def timelines(out: Path) -> dict[str, Timeline]:
    paths = [path for path in out.glob("*.json") if path.name != "manifest.json"]
    found = [Timeline.from_json(path.read_text(), path.name) for path in paths]
    return {one.id: one for one in found}


def test_a_video_gives_what_its_shard_set_gives(model: Path, videos: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"workers": 1, "missing": "zeros", "tracking": OFF}
    keys |= {"source": str(videos), "backbones": [LIGHT, LOUDNESS]}
    shards = extract(ExtractConfig(out=str(tmp_path / "shards"), **keys))
    folder, out = str(shards.folder), str(tmp_path / "of_shards")
    parse(ParseConfig(parser=str(model), shards=folder, out=out, tracking=OFF))
    expected = timelines(tmp_path / "of_shards")
    found = run(model, tmp_path / "out", videos)
    assert set(found) == {"plain", "long", "mute", "sound"}
    for name in ("plain", "mute", "sound"):
        np.testing.assert_allclose(
            found[name].frame_prob, expected[name].frame_prob, rtol=0, atol=2e-6
        )
        assert found[name].seconds == expected[name].seconds
        assert found[name].missing.keys() == expected[name].missing.keys()
    # Its windows begin at 0, 10 and 13; only the first is a clip of the set.
    np.testing.assert_allclose(
        found["long"].frame_prob[:10], expected["long_0_10"].frame_prob, rtol=0, atol=2e-6
    )
    assert found["long"].seconds == 23


def test_what_is_missing_has_no_events_and_a_reason(
    model: Path, videos: Path, tmp_path: Path
) -> None:
    found = run(model, tmp_path, videos / "mute.mp4", videos / "sound.wav", threshold="0.01")
    assert found["mute"].missing == {"audio": "the file has no sound"}
    assert found["sound"].missing == {"visual": "the file has no pictures"}
    assert {event.modality for event in found["mute"].events} == {"visual"}
    assert max(event.offset for event in found["mute"].events) == 4
    page = (tmp_path / "mute.html").read_text()
    assert "No audio events: the file has no sound." in page and "reads 10 s" in page
    assert re.findall(r"<(video|audio) controls", page) == ["video"]
    assert re.findall(r"<(video|audio) controls", (tmp_path / "sound.html").read_text()) == [
        "audio"
    ]


def test_a_broken_video_costs_no_other_one(model: Path, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    with pytest.raises(
        DataError, match=r"1 of 2 videos cannot be parsed: .*broken.mp4 is no media"
    ):
        run(model, tmp_path / "out", tmp_path / "broken.mp4", videos / "plain.mp4")
    assert set(timelines(tmp_path / "out")) == {"plain"}


def test_a_parser_of_other_features_is_refused(model: Path, videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"features of 'light 00000000, .* cannot be extracted"):
        run(model, tmp_path, videos, backbones=[])
    with pytest.raises(CheckpointError, match=r"the backbones make \{'visual': 4\} of 'light 0"):
        run(model, tmp_path, videos, backbones=[LIGHT])


def test_two_videos_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a/x.mp4 and .*b/x.mkv have the same id"):
        find_videos([str(tmp_path / "a/x.mp4"), str(tmp_path / "b/x.mkv")])
