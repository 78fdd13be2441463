"""Fine-tuning through the real launcher, from a pretrained encoder, then evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from avvp_dist.config import Encoder as EncoderConfig
from avvp_dist.config import FinetuneConfig
from avvp_dist.data.llp import read_annotations
from avvp_dist.data.shards import ShardSet
from avvp_dist.errors import CheckpointError, DataError
from avvp_dist.evaluation.predictions import Predictions, report
from avvp_dist.models.encoder import Encoder
from avvp_dist.models.export import load_parser, save_model
from avvp_dist.tracking.records import read_series
from avvp_dist.training.parsing import ParsingTask, _pretrained
from avvp_dist.training.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def encoder(packed: dict[str, ShardSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "model"
    config, train = EncoderConfig(size="tiny"), packed["train"]
    meta = {
        "kind": "encoder",
        "encoder": asdict(config),
        "dims": train.dims,
        "snippets": train.snippets,
        "extractor": train.manifest["extractor"],
        "grounding": "none",
    }
    save_model(folder, Encoder(config, train.dims, train.snippets).state_dict(), meta)
    return folder


def config_of(packed: dict[str, ShardSet], features: Path, out: Path) -> FinetuneConfig:
    config = FinetuneConfig()
    config.data.train, config.data.val = (str(packed[s].folder) for s in ("train", "val"))
    config.data.annotations, config.trainer.out = str(features), str(out)
    config.parser.width = 32
    return config


@pytest.mark.launch
def test_two_ranks_train_the_adversarial_parser_over_an_encoder_and_it_scores_the_same_again(
    packed: dict[str, ShardSet], features: Path, encoder: Path, launch: Any, tmp_path: Path
) -> None:
    keys = [f"data.{split}={packed[split].folder}" for split in ("train", "val")]
    keys += [f"data.annotations={features}", f"encoder.checkpoint={encoder}", "encoder.tune=true"]
    keys += [f"trainer.out={tmp_path}", "trainer.epochs=3", "trainer.batch_size=16"]
    keys += ["parser.width=32", "trainer.zero_stage=1", "tracking.enabled=false"]
    process = launch("launch/finetune.py", *keys)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    series = read_series(tmp_path)
    assert {"loss", "train/adversarial", "val/segment_type_av"} <= series.keys()

    command = [sys.executable, "launch/evaluate.py", f"parser={tmp_path / 'model'}", "split=val"]
    command += [f"shards={packed['val'].folder}", f"annotations={features}"]
    command += [f"out={tmp_path / 'scores'}", "tracking.enabled=false"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "scores" / "scores.json").read_text())
    best = max(series["val/segment_type_av"].values())
    assert found["scores"]["segment_type_av"] == pytest.approx(best, abs=1e-6)
    annotations, path = read_annotations(features, "val"), tmp_path / "scores" / "predictions.npz"
    saved = Predictions.load(path).ordered(annotations, path)
    assert report(saved, annotations, "video", 0.5)["scores"] == found["scores"]
    for picture in ("classes.png", "timeline.png"):
        assert (tmp_path / "scores" / picture).stat().st_size > 10_000
    _, meta = load_parser(tmp_path / "model")
    assert meta["pretrained"]["version"] == str(encoder)


def test_tuned_encoder_has_a_learning_rate_of_its_own(
    packed: dict[str, ShardSet], features: Path, encoder: Path, tmp_path: Path
) -> None:
    config = config_of(packed, features, tmp_path)
    config.encoder.checkpoint, config.encoder.tune = str(encoder), True
    config.encoder.lr_scale = 0.5
    made = ParsingTask(
        config,
        packed["train"],
        packed["val"],
        read_annotations(features, "val"),
        *_pretrained(config, packed["train"], ALONE),
    )
    rates = {group["lr"] for group in made.groups()}
    assert rates == {config.optimizer.lr, config.optimizer.lr * 0.5}


def test_an_encoder_for_other_features_is_refused(
    packed: dict[str, ShardSet], features: Path, encoder: Path, tmp_path: Path
) -> None:
    config = config_of(packed, features, tmp_path)
    config.encoder.checkpoint = str(encoder)
    other = ShardSet(packed["train"].folder)
    other.dims = {"audio": 12, "visual": 99}
    with pytest.raises(CheckpointError, match="visual': 99"):
        _pretrained(config, other, ALONE)
    config.encoder.checkpoint = str(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        _pretrained(config, packed["train"], ALONE)


def test_missing_validation_clips_are_refused(
    packed: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    config = config_of(packed, features, tmp_path)
    annotations = read_annotations(features, "test")
    with pytest.raises(DataError, match="lacks 24 of the 24 test clips"):
        ParsingTask(config, packed["train"], packed["val"], annotations, None, None)
