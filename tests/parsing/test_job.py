"""The stage `avvp parse`, from a shard set to a folder of timelines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.config import ParseConfig, ParserConfig, TrackingConfig
from avvp_dist.errors import CheckpointError, ConfigError, DataError
from avvp_dist.models.export import build_parser, load_parser, save_model
from avvp_dist.models.specification import ParserSpec
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.parsing.job import parse
from avvp_dist.parsing.timeline import Timeline
from avvp_dist.runtime.ranks import single_rank
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.prediction import predict

DIMS = {"audio": 6, "visual": 8}
SPEC = ParserSpec(
    parser=ParserConfig(width=16),
    dims=DIMS,
    snippets=10,
    classes=["Speech", "Dog", "Cat"],
    extractor="YAMNet",
    manifest="none",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips: a mute one, one of 7 s, and one with a name from hell."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("parse") / "shards"
    streams = [
        {name: 3 * rng.normal(size=(10, dim)) for name, dim in DIMS.items()} for _ in "abcde"
    ]
    streams[1]["audio"][:] = 0
    ids = ["a_0_10", "mute_0_10", "short_0_7", "<b>&/..", "e_0_10"]
    clips = [Clip(name, one) for name, one in zip(ids, streams, strict=True)]
    clips[2] = Clip(ids[2], {name: x[:7] for name, x in streams[2].items()})
    write_shard_set(clips, folder, snippets=10, extractor="YAMNet")
    return folder


def config_of(shards: Path, out: Path, spec: ParserSpec = SPEC, **keys: Any) -> ParseConfig:
    model = out / "model"
    if not model.exists():
        save_model(model, build_parser(spec).state_dict(), spec)
    tracking = TrackingConfig(enabled=False)
    return ParseConfig(
        parser=str(model), shards=str(shards), out=str(out / "out"), tracking=tracking, **keys
    )


def timelines(out: Path) -> dict[str, Timeline]:
    paths = (path for path in (out / "out").glob("*.json") if path.name != "manifest.json")
    found = [Timeline.from_json(path.read_text(), path.name) for path in paths]
    return {one.id: one for one in found}


def test_timelines_are_what_the_rule_makes_of_the_parser(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parse(config_of(shards, tmp_path, rule="modality", threshold="0.45", batch_size=2))
    found = timelines(tmp_path)
    opened = ShardSet(shards)
    parser, _ = load_parser(tmp_path / "model")
    predictions = predict(parser, opened, np.arange(5), single_rank().device)
    masks = predictions.decided("modality", 0.45)
    assert list(found) != [] and set(found) == set(opened.ids)
    for clip, name in enumerate(opened.ids):
        timeline = found[name]
        mask = np.zeros((10, 2, 3), bool)
        for event in timeline.events:
            column = (("audio", "visual").index(event.modality), SPEC.classes.index(event.label))
            mask[(slice(event.onset, event.offset), *column)] = True
        expected = masks[clip].copy()
        expected[timeline.seconds :] = False
        if name == "mute_0_10":
            expected[:, 0] = False
        assert np.array_equal(mask, expected)
        close = predictions.frame_prob[clip, : timeline.seconds]
        np.testing.assert_allclose(timeline.probabilities, close, atol=1e-6)
    assert masks.any() and found["short_0_7"].padding == 3
    assert found["mute_0_10"].missing == {"audio": "all audio features are zero"}
    said = capsys.readouterr()
    assert said.out.startswith("5 clips, ") and said.out.endswith("out/index.html\n")
    assert "parsing: 3 of 3 batches, 5 of 5 clips" in said.err


def test_the_same_again_changes_nothing_whatever_else_is_parsed(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parse(config_of(shards, tmp_path))
    assert "12 files changed" in capsys.readouterr().out
    parse(config_of(shards, tmp_path))
    parse(config_of(shards, tmp_path, ids=["e_0_10", "<b>&/.."]))
    parse(config_of(shards, tmp_path, max_clips=1))
    assert capsys.readouterr().out.count("nothing has changed") == 3
    assert len(timelines(tmp_path)) == 5


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"extractor": "CLAP"}, "was trained on .* of 'CLAP', the shard set holds .* of 'YAMNet'"),
        ({"dims": {"audio": 6, "visual": 9}}, "was trained on .*'visual': 9"),
        ({"snippets": 8}, "reads clips of 8 snippets, the shard set holds 10"),
    ],
)
def test_a_parser_of_other_features_is_refused(
    shards: Path, tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(CheckpointError, match=f"^parser: .*{fault}"):
        parse(config_of(shards, tmp_path, replace(SPEC, **changes)))
    assert not (tmp_path / "out").exists()


def test_an_unknown_clip_is_named_with_the_nearest(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ids: e_0_11 is not in .*, did you mean e_0_10\?$"):
        parse(config_of(shards, tmp_path, ids=["e_0_11"]))


def test_thresholds_of_other_classes_are_refused(shards: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "limits.npy", np.full((2, 25), 0.5))
    with pytest.raises(DataError, match=r"limits\.npy is \[2, 25\], expected finite \[2, 3\]"):
        parse(config_of(shards, tmp_path, threshold=str(tmp_path / "limits.npy")))
