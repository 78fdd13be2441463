"""Fine-tuning: on two ranks with evaluation after it, and alone in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.annotations.refined import save_refined
from avvp_dist.config import CalibrateConfig, EncoderConfig, FinetuneConfig, ObjectiveConfig
from avvp_dist.errors import CheckpointError, DataError, StorageError
from avvp_dist.evaluation.predictions import Predictions, report
from avvp_dist.evaluation.scores import SELECTION
from avvp_dist.loading.mixture import Mixture
from avvp_dist.models.export import build_encoder, load_parser, save_model
from avvp_dist.models.specification import EncoderSpec
from avvp_dist.runtime.ranks import single_rank
from avvp_dist.shards.schema import LLP_CLASSES
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.finetuning import (
    ParsingTask,
    attach_encoder,
    find_encoder,
    finetune,
    plan_finetuning,
)
from avvp_dist.tracking.records import (
    EndRecord,
    RegisterRecord,
    RunRecord,
    read_records,
    read_series,
)
from avvp_dist.tracking.registry import Model
from avvp_dist.tracking.run import stage_run

CHOICE = f"val/{SELECTION}"


@pytest.fixture(scope="module")
def encoder(packed: dict[str, ShardSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "model"
    config, train = EncoderConfig(size="tiny"), packed["train"]
    spec = EncoderSpec(
        encoder=config,
        objective=ObjectiveConfig(),
        dims=train.dims,
        snippets=train.snippets,
        extractor=train.extractor,
        manifest=train.digest,
        grounding="none",
    )
    save_model(folder, build_encoder(spec).state_dict(), spec)
    return folder


def config_of(packed: dict[str, ShardSet], features: Path, out: Path) -> FinetuneConfig:
    config = FinetuneConfig()
    config.data.train, config.data.val = (str(packed[s].folder) for s in ("train", "val"))
    config.data.annotations, config.trainer.out = str(features), str(out)
    config.parser.width = 32
    return config


@pytest.mark.launch
def test_two_ranks_train_the_adversarial_parser_over_an_encoder_and_it_scores_the_same_again(
    packed: dict[str, ShardSet], features: Path, encoder: Path, fork_ranks: Any, tmp_path: Path
) -> None:
    keys = [f"data.{split}={packed[split].folder}" for split in ("train", "val")]
    keys += [
        f"data.annotations={features}",
        f"pretrained.checkpoint={encoder}",
        "pretrained.tune=true",
    ]
    keys += [f"trainer.out={tmp_path}", "trainer.epochs=3", "trainer.batch_size=16"]
    keys += ["parser.width=32", "trainer.zero_stage=1"]
    keys += ["tracking.enabled=false", "tracking.figures=false"]
    process = fork_ranks("launch/finetune.py", *keys)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    tensors = len(load_file(encoder / "model.safetensors"))
    said = f"{encoder}: all {tensors} tensors loaded, none missing, none unexpected\n"
    assert out.count(said) == 1
    series = read_series(tmp_path)
    assert {"train/loss", "train/adversarial", "val/segment_type_av"} <= series.keys()

    keys = [f"parser={tmp_path / 'model'}", "split=val", f"shards={packed['val'].folder}"]
    keys += [f"annotations={features}", f"out={tmp_path / 'scores'}", "tracking.enabled=false"]
    process = fork_ranks("launch/evaluate.py", *keys, ranks=1)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found = json.loads((tmp_path / "scores" / "scores.json").read_text())
    best = max(series["val/segment_type_av"].values())
    assert found["scores"]["segment_type_av"] == pytest.approx(best, abs=1e-6)
    annotations, path = read_annotations(features, "val"), tmp_path / "scores" / "predictions.npz"
    saved = Predictions.load(path).ordered(annotations, path)
    assert report([saved], annotations, "video", 0.5).scores == found["scores"]
    for picture in ("classes.png", "timeline.png"):
        assert (tmp_path / "scores" / picture).stat().st_size > 10_000
    _, spec = load_parser(tmp_path / "model")
    assert spec.pretrained is not None and spec.pretrained.version == str(encoder)


def test_tuned_encoder_has_a_learning_rate_of_its_own(
    packed: dict[str, ShardSet], features: Path, encoder: Path, tmp_path: Path
) -> None:
    config = config_of(packed, features, tmp_path)
    config.pretrained.checkpoint, config.pretrained.tune = str(encoder), True
    config.pretrained.lr_scale = 0.5
    made = ParsingTask(
        config,
        Mixture([packed["train"]]),
        packed["val"],
        read_annotations(features, "val"),
        *attach_encoder(config, Model(encoder), single_rank()),
    )
    rates = {group.lr for group in made.parameter_groups()}
    assert rates == {config.optimizer.lr, config.optimizer.lr * 0.5}


def test_an_encoder_for_other_features_is_refused(
    packed: dict[str, ShardSet], features: Path, encoder: Path, tmp_path: Path
) -> None:
    config = config_of(packed, features, tmp_path)
    config.pretrained.checkpoint = str(encoder)
    other = ShardSet(packed["train"].folder)
    other.dims = {"audio": 12, "visual": 99}
    with pytest.raises(CheckpointError, match="visual': 99"):
        find_encoder(config, other)
    config.pretrained.checkpoint = str(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        find_encoder(config, packed["train"])


def test_missing_validation_clips_are_refused(
    packed: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    config = config_of(packed, features, tmp_path)
    annotations = read_annotations(features, "test")
    with pytest.raises(DataError, match="lacks 24 of 24 test clips"):
        ParsingTask(config, Mixture([packed["train"]]), packed["val"], annotations)


# In this process.


def short_config(packed: dict[str, ShardSet], features: Path, out: Path) -> FinetuneConfig:
    """Two steps an epoch."""
    config = config_of(packed, features, out)
    config.parser.width, config.parser.dropout = 16, 0.0
    config.trainer.batch_size, config.trainer.log_every = 48, 1
    config.tracking.enabled = config.tracking.figures = False
    return config


def weights_at(out: Path, step: int) -> dict[str, Tensor]:
    """The parser in a checkpoint, by its own names."""
    folder = out / "checkpoints" / f"step-{step:08d}" / "state"
    (file,) = folder.glob("*model_states.pt")
    state = torch.load(file, map_location="cpu", weights_only=False)["module"]
    return {name.removeprefix("parser."): tensor for name, tensor in state.items()}


def registered(out: Path) -> RegisterRecord:
    (record,) = (r for r, _ in read_records(out) if isinstance(r, RegisterRecord))
    return record


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("export", "epoch"), [("best", 3), ("last", 4)])
def test_the_best_or_the_last_epoch_is_exported(
    packed: dict[str, ShardSet],
    features: Path,
    one_rank: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    export: str,
    epoch: int,
) -> None:
    scores = iter([5.0, 7.0, 7.0, 6.0])  # of equal ones the later is taken
    monkeypatch.setattr(ParsingTask, "validate", lambda _: {CHOICE: next(scores)})
    config = short_config(packed, features, tmp_path)
    config.trainer.epochs = config.trainer.keep = 4
    config.trainer.export = export
    finetune(config)
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert [equal(exported, weights_at(tmp_path, 2 * n)) for n in range(1, 5)] == [
        n == epoch for n in range(1, 5)
    ]
    # The score is the exported epoch's, not the best.
    assert registered(tmp_path).tags[CHOICE] == ("7" if export == "best" else "6")


def test_training_ends_when_validations_bring_no_better_score(
    packed: dict[str, ShardSet],
    features: Path,
    one_rank: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores = iter([5.0, 7.0, 7.0, 6.0, 8.0, 7.0, 7.0, 8.0])  # an equal one is not better
    monkeypatch.setattr(ParsingTask, "validate", lambda _: {CHOICE: next(scores)})
    config = short_config(packed, features, tmp_path)
    config.optimizer.schedule, config.trainer.resume = "cosine", "auto"
    config.trainer.epochs, config.trainer.max_steps, config.trainer.keep = 0, 9, 9
    config.trainer.validate_every = config.trainer.checkpoint_every = 1
    for patience, stop, best in ((2, 4, 3), (2, 4, 3), (3, 8, 8)):  # the second does nothing
        config.trainer.patience = patience
        finetune(config)
        ended = f"{tmp_path}: stopped early at step {stop} of 9, after {patience} validations"
        assert ended in capsys.readouterr().out
        assert equal(
            load_file(tmp_path / "model" / "model.safetensors"), weights_at(tmp_path, best)
        )
        assert (
            json.loads(max(tmp_path.glob("checkpoints/*/trainer.json")).read_text())["step"] == stop
        )
    series = read_series(tmp_path)
    assert series["train/early_stop_step"] == {4: 4, 8: 8}
    whole = [(1 + np.cos(np.pi * step / 9)) / 2 for step in range(8)]
    assert list(series["train/lr"].values()) == pytest.approx(config.optimizer.lr * np.array(whole))
    ends = [one.status for one, _ in read_records(tmp_path) if isinstance(one, EndRecord)]
    assert ends == ["FINISHED"] * 3
    plan_finetuning(config, 1)
    assert "from step-00000008, where it has stopped early" in capsys.readouterr().out


def test_training_follows_refined_labels(
    packed: dict[str, ShardSet], features: Path, one_rank: None, tmp_path: Path
) -> None:
    train, rng = packed["train"], np.random.default_rng(0)
    weak = np.array([[name in names for name in LLP_CLASSES] for names in train.labels])
    labels = weak[:, None] & (rng.random((len(weak), 2, 25)) < 0.7)
    save_refined(tmp_path / "labels.npz", train.ids, labels)
    first = {}
    for name, file in (("plain", ""), ("refined", str(tmp_path / "labels.npz"))):
        config = short_config(packed, features, tmp_path / name)
        config.data.refined_labels, config.trainer.max_steps = file, 1
        config.loss.lambda_contrastive = 1.0
        finetune(config)
        series = read_series(tmp_path / name)
        terms = ("weak", "adversarial", "contrastive", "audio", "visual")
        first[name] = {term: series[f"train/{term}"][1] for term in terms}
    plain, refined = first["plain"], first["refined"]
    assert {term for term in terms if plain[term] != refined[term]} == {"audio", "visual"}


def test_refined_labels_of_other_clips_are_refused(
    packed: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    val = packed["val"]
    save_refined(tmp_path / "labels.npz", val.ids, np.zeros((len(val), 2, 25), bool))
    config = config_of(packed, features, tmp_path)
    config.data.refined_labels = str(tmp_path / "labels.npz")
    data, annotations = Mixture([packed["train"]]), read_annotations(features, "val")
    with pytest.raises(DataError, match=r"labels\.npz lacks 96 of 96 clips"):
        ParsingTask(config, data, val, annotations)


@pytest.mark.parametrize("changed", ["labels", "validation"])
def test_labels_that_change_under_a_training_are_named(
    packed: dict[str, ShardSet], features: Path, one_rank: None, changed: str, tmp_path: Path
) -> None:
    for file in features.glob("*.csv"):
        shutil.copy(file, tmp_path)
    train = packed["train"]
    weak = np.array([[name in names for name in LLP_CLASSES] for names in train.labels])
    save_refined(tmp_path / "labels.npz", train.ids, np.stack([weak, weak], 1))
    config = short_config(packed, tmp_path, tmp_path / "run")
    config.data.refined_labels = str(tmp_path / "labels.npz")
    config.trainer.epochs, config.trainer.resume = 1, "auto"
    finetune(config)
    if changed == "labels":
        save_refined(tmp_path / "labels.npz", train.ids, np.stack([weak, weak & False], 1))
    else:
        dense = tmp_path / "AVVP_eval_visual.csv"
        rows = dense.read_text().splitlines(keepends=True)
        first = next(row for row in rows if row.split("\t")[0] in packed["val"].ids)
        dense.write_text("".join(row for row in rows if row != first))
    config.trainer.epochs = 2
    with pytest.raises(CheckpointError, match=rf"other data .*: {changed} \(data\."):
        finetune(config)


def test_an_encoder_is_tuned_under_nothing_but_pooling(
    packed: dict[str, ShardSet], features: Path, encoder: Path, one_rank: None, tmp_path: Path
) -> None:
    """configs/finetune/pretrain_*_mmil.yaml."""
    config = short_config(packed, features, tmp_path)
    config.pretrained.checkpoint, config.pretrained.tune = str(encoder), True
    config.pretrained.raw = config.parser.skip = config.parser.discriminator = False
    config.parser.fusion, config.trainer.epochs = "none", 1
    finetune(config)
    parser, _ = load_parser(tmp_path / "model")
    before = load_file(encoder / "model.safetensors")
    after = {n: t for n, t in parser.state_dict().items() if n.startswith("encoder.")}
    assert after.keys() == {f"encoder.{name}" for name in before}
    assert not any(torch.equal(after[f"encoder.{name}"], before[name]) for name in before)


def test_a_resumed_run_may_export_another_epoch(
    packed: dict[str, ShardSet],
    features: Path,
    one_rank: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    scores = iter([0.1, 50.0, 0.5, 0.3, 0.2])
    monkeypatch.setattr(ParsingTask, "validate", lambda _: {CHOICE: next(scores)})
    # "best" knows of the epochs since it was asked for.
    for epochs, export, expected in ((2, "last", 2), (4, "best", 3), (5, "last", 5)):
        config = short_config(packed, features, tmp_path)
        config.trainer.epochs, config.trainer.keep, config.trainer.export = epochs, 5, export
        config.trainer.resume = "auto"
        finetune(config)
        exported = load_file(tmp_path / "model" / "model.safetensors")
        assert equal(exported, weights_at(tmp_path, 2 * expected)), export


def test_training_clips_that_are_validation_clips_are_refused(
    packed: dict[str, ShardSet], features: Path, one_rank: None, tmp_path: Path
) -> None:
    config = config_of(packed, features, tmp_path / "run")
    config.data.train = config.data.val
    with pytest.raises(DataError, match=r"24 of 24 training clips are cut from validation"):
        finetune(config)
    config.data.allow_contaminated, config.trainer.epochs = True, 1
    config.trainer.batch_size = 8
    finetune(config)
    records = [one for one, _ in read_records(tmp_path / "run") if isinstance(one, RunRecord)]
    assert records[0].tags["contaminated"] == "24"


@pytest.mark.launch
def test_a_registered_encoder_is_checked_first_and_kept_when_the_run_goes_on(
    packed: dict[str, ShardSet],
    features: Path,
    encoder: Path,
    fork_ranks: Any,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    store = f"sqlite:///{shutil.copy(empty_store, tmp_path)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    for number in (1, 2):
        export = Path(shutil.copytree(encoder, tmp_path / f"model{number}"))
        (export / "note.txt").write_text(str(number))
        with stage_run("made", tmp_path / f"made{number}", CalibrateConfig(), {}) as run:
            run.register("avvp-encoder", export, {})
        config = config_of(packed, features, tmp_path / "run")
        config.pretrained.checkpoint, config.trainer.resume = (
            "models:/avvp-encoder@candidate",
            "auto",
        )
        found = find_encoder(config, packed["train"])
        assert found is not None and found.version == "avvp-encoder/1"  # not the new candidate
        assert len(found.run) == 32
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert find_encoder(config, packed["train"]) == found
    config.trainer.resume = "never"
    with pytest.raises(StorageError, match=r"^http://127.0.0.1:9 does not answer \("):
        find_encoder(config, packed["train"])

    stored = sorted((tmp_path / "mlartifacts").rglob("note.txt"), key=Path.read_text)
    weights = stored[1].with_name("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    keys = [f"data.{split}={packed[split].folder}" for split in ("train", "val")]
    keys += [
        f"data.annotations={features}",
        f"pretrained.checkpoint={config.pretrained.checkpoint}",
    ]
    keys += [f"trainer.out={tmp_path / 'refused'}"]
    process = fork_ranks("launch/finetune.py", *keys, MLFLOW_TRACKING_URI=store)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 4
    (line,) = (line for line in err.splitlines() if "error:" in line)
    assert "avvp-encoder/2: its files are not those that were registered" in line
    assert "model.safetensors has another SHA-256" in line
    assert not (tmp_path / "refused" / "records.jsonl").exists()
