"""Label refinement: partners, the rule by hand, and the file that fine-tuning reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.annotations.refined import load_refined
from avvp_dist.config import FinetuneConfig, ParserConfig, RefineConfig, TrackingConfig
from avvp_dist.errors import CheckpointError, DataError
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.loading.loader import read_clips
from avvp_dist.loading.mixture import Mixture
from avvp_dist.models.export import build_parser, load_parser, save_model
from avvp_dist.models.specification import ParserSpec
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import LLP_CLASSES, Clip
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.finetuning import ParsingTask
from avvp_dist.tasks.prediction import load_streams, predict
from avvp_dist.tasks.refinement import draw_partners, keep_labels, refine
from avvp_dist.tracking.records import read_series
from avvp_dist.tracking.run import stage_run
from avvp_dist.training.task import StepInfo

CPU = torch.device("cpu")
Mask = NDArray[np.bool_]
Probabilities = NDArray[np.float32]

# Partners.


def names(weak: Mask) -> list[str]:
    return [f"n{number}" for number in range(len(weak))]


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_partners_share_no_label(share: float) -> None:
    rng = np.random.default_rng(0)
    weak = rng.random((200, 6)) < share
    for seed in range(5):
        partners = draw_partners(weak, names(weak), seed)
        assert partners.shape == (200,) and partners.min() >= 0
        assert not (weak & weak[partners]).any()


def test_partners_are_drawn_by_the_seed() -> None:
    weak = np.eye(10, dtype=bool)[np.arange(300) % 10]
    first, again, other = (draw_partners(weak, names(weak), seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert (first != other).mean() > 0.9
    assert len(np.unique(first)) > 150  # not everybody has the same one


def test_the_only_possible_partner_is_found() -> None:
    weak = np.zeros((500, 2), bool)
    weak[:, 0] = True
    weak[321] = [False, True]
    partners = draw_partners(weak, names(weak), 0)
    assert (np.delete(partners, 321) == 321).all()
    assert partners[321] != 321


def test_a_clip_without_a_possible_partner_is_an_error() -> None:
    weak = np.eye(3, dtype=bool)[np.arange(60) % 3]
    weak[17] = True
    with pytest.raises(DataError, match="clip n17 shares a label with every other clip"):
        draw_partners(weak, names(weak), 0)


# The rule.


def predictions(modality_prob: Probabilities) -> Predictions:
    nothing = np.zeros(0, np.float32)
    return Predictions((), nothing, nothing, modality_prob)


def by_loops(
    weak: Mask,
    own: Probabilities,
    heard: Probabilities,
    seen: Probabilities,
    threshold: float = 0.5,
) -> Mask:
    """Which labels stay, `[N, 2, C]`: MA's rule, said one label at a time."""
    kept = np.zeros((len(weak), 2, weak.shape[1]), bool)
    for modality, swapped in ((0, heard), (1, seen)):
        errors = []
        for c in range(weak.shape[1]):
            right = [(p > 0.5) == y for p, y in zip(own[:, modality, c], weak[:, c], strict=True)]
            errors.append(1 - sum(right) / len(right))
        for n, c in zip(*np.nonzero(weak), strict=True):
            error = errors[c] / max(errors)
            audio, visual = swapped[n, :, c]
            drop = error > 0 and audio / error < threshold and visual / error < threshold
            kept[n, modality, c] = not drop
    return kept


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_labels_go_when_neither_modality_finds_them(threshold: float) -> None:
    rng = np.random.default_rng(1)
    weak = rng.random((80, 6)) < 0.4
    # Classes of all difficulties, the first without an error for the sound.
    own = np.clip(weak[:, None] + rng.normal(0, np.linspace(0, 0.9, 6), (80, 2, 6)), 0, 1)
    own[:, 1] = own[:, 1, ::-1]
    heard, seen = rng.random((2, 80, 2, 6)) ** 2
    given = [array.astype(np.float32) for array in (own, heard, seen)]
    found = keep_labels(
        weak, predictions(given[0]), (predictions(given[1]), predictions(given[2])), threshold
    )
    expected = by_loops(weak, *given, threshold)
    assert np.array_equal(found, expected)
    assert np.array_equal(found[:, 0, 0], weak[:, 0])
    for modality in range(2):
        gone = weak & ~expected[:, modality]
        assert 0 < gone.sum() < weak.sum()
    assert (expected[:, 0] != expected[:, 1]).any()


def test_a_parser_without_errors_takes_nothing_away() -> None:
    weak = np.eye(4, dtype=bool)
    own = np.stack([weak, weak], 1).astype(np.float32)
    nothing = predictions(np.zeros_like(own))
    assert np.array_equal(keep_labels(weak, predictions(own), (nothing, nothing), 0.5), own > 0)


# Whole.


def exported(folder: Path, shards: ShardSet, **changes: Any) -> Path:
    """A parser with fresh weights and clear opinions."""
    spec = ParserSpec(
        parser=ParserConfig(width=16),
        dims=shards.dims,
        snippets=shards.snippets,
        classes=list(LLP_CLASSES),
        extractor=shards.extractor,
        manifest=shards.digest,
    )
    spec = replace(spec, **changes)
    torch.manual_seed(0)
    parser = build_parser(spec)
    with torch.no_grad():
        parser.prob.weight *= 8
    save_model(folder, parser.state_dict(), spec)
    return folder


def weak_labels(shards: ShardSet) -> Mask:
    return np.array([[name in (names or ()) for name in LLP_CLASSES] for names in shards.labels])


@torch.no_grad()
def asked(model: Path, streams: dict[str, Tensor], audio: Any, visual: Any) -> Probabilities:
    """A parser's modality probabilities of the sound of some clips and the pictures of others."""
    parser, _ = load_parser(model)
    mixed = {name: x[audio if name == "audio" else visual] for name, x in streams.items()}
    found: Probabilities = parser.eval()(mixed).modality_prob.numpy()
    return found


@pytest.fixture(scope="module")
def refined(packed: dict[str, ShardSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The refined labels of the train split; the parser lies in `model` beside."""
    out, train = tmp_path_factory.mktemp("refined"), packed["train"]
    return refine(
        RefineConfig(
            parser=str(exported(out / "model", train)),
            shards=str(train.folder),
            out=str(out / "labels.npz"),
            threshold=0.9,
            batch_size=40,
            seed=5,
            tracking=TrackingConfig(enabled=False, figures=False),
        )
    )


def test_refined_labels_are_those_of_the_rule(packed: dict[str, ShardSet], refined: Path) -> None:
    train, model = packed["train"], refined.parent / "model"
    weak, clips = weak_labels(train), np.arange(len(train))
    streams = load_streams(train, clips, CPU, torch.float32)
    partners = draw_partners(weak, names(weak), 5)
    own, heard, seen = (
        asked(model, streams, audio, visual)
        for audio, visual in ((clips, clips), (clips, partners), (partners, clips))
    )
    expected = by_loops(weak, own, heard, seen, 0.9)
    found = load_refined(refined, train.ids, weak)
    assert np.array_equal(found, expected)
    gone = (weak[:, None] & ~found).sum((0, 2))
    assert gone.min() > 10 and gone.max() < weak.sum() - 10
    series = read_series(refined.with_name("labels.run"))
    for count, name in zip(gone, ("audio", "visual"), strict=True):
        assert series[f"{name}_labels_dropped"] == {0: count}


def task_of(packed: dict[str, ShardSet], features: Path, labels: str) -> ParsingTask:
    config = FinetuneConfig()
    config.parser.width, config.data.refined_labels = 16, labels
    torch.manual_seed(0)
    annotations = read_annotations(features, "val")
    return ParsingTask(config, Mixture([packed["train"]]), packed["val"], annotations)


def test_fine_tuning_reads_them(packed: dict[str, ShardSet], features: Path, refined: Path) -> None:
    weak = weak_labels(packed["train"])
    clips = np.random.default_rng(0).permutation(len(weak))
    parts = []
    for labels in ("", str(refined)):
        task = task_of(packed, features, labels)
        task.module.eval()
        read, _ = read_clips(task.data, clips)
        batch = task.make_batch(read, StepInfo(0, 0, 0.0))
        parts.append({name: float(part) for name, part in task.module(batch)[1].items()})
    plain, changed = parts
    different = {name for name in plain if plain[name] != changed[name]}
    assert different == {"audio", "visual"}
    kept = batch.kept.numpy() > 0
    found = load_refined(refined, packed["train"].ids, weak)
    assert np.array_equal(kept, (found | ~weak[:, None])[clips])


def test_a_parser_of_other_features_is_refused(packed: dict[str, ShardSet], tmp_path: Path) -> None:
    model = exported(tmp_path / "model", packed["train"], dims={"audio": 12, "visual": 99})
    config = RefineConfig(
        parser=str(model),
        shards=str(packed["train"].folder),
        out=str(tmp_path / "labels.npz"),
        tracking=TrackingConfig(enabled=False, figures=False),
    )
    with pytest.raises(CheckpointError, match="'visual': 99"):
        refine(config)
    assert not (tmp_path / "labels.npz").exists()


def test_foreign_pictures_are_those_of_the_other_clip(
    packed: dict[str, ShardSet], tmp_path: Path
) -> None:
    train = packed["train"]
    clips, pictures = np.array([80, 2, 44, 45, 0]), np.array([1, 90, 44, 3, 50])
    heard, seen = train.gather(clips), train.gather(pictures)
    swapped = [
        Clip(f"clip {n}", {"audio": heard["audio"][n], "visual": seen["visual"][n]})
        for n in range(len(clips))
    ]
    mixed = write_shard_set(swapped, tmp_path / "mixed")
    parser, _ = load_parser(exported(tmp_path / "model", train))
    expected = predict(parser, mixed, np.arange(5), CPU)
    found = predict(parser, train, clips, CPU, batch_size=2, pictures=pictures)
    assert found.ids == tuple(train.ids[clip] for clip in clips)
    for name in ("frame_prob", "video_prob", "modality_prob"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(ours, theirs, atol=1e-6, err_msg=name)
    plain = predict(parser, train, clips, CPU)
    moved = abs(plain.frame_prob - found.frame_prob).max((1, 2, 3)) > 1e-3
    assert moved.tolist() == [True, True, False, True, True]


def test_refining_beside_a_parser_leaves_its_records_alone(
    packed: dict[str, ShardSet], tmp_path: Path
) -> None:
    """RUN/labels.npz is a likely place, and RUN may be resumed."""
    train = packed["train"]
    with stage_run(
        "finetune",
        tmp_path,
        RefineConfig(tracking=TrackingConfig(enabled=False, figures=False)),
        {},
    ) as run:
        run.log(3, loss=1.0)
    refine(
        RefineConfig(
            parser=str(exported(tmp_path / "model", train)),
            shards=str(train.folder),
            out=str(tmp_path / "labels.npz"),
            tracking=TrackingConfig(enabled=False, figures=False),
        )
    )
    assert read_series(tmp_path) == {"loss": {3: 1.0}}


def test_clips_with_padding_are_refused(packed: dict[str, ShardSet], tmp_path: Path) -> None:
    streams = packed["train"].gather(np.arange(2))
    clips = [
        Clip(f"clip {n}", {name: x[n] for name, x in streams.items()}, labels, length)
        for n, (labels, length) in enumerate([(("Dog",), 10), (("Car",), 7)])
    ]
    short = write_shard_set(clips, tmp_path / "short", extractor="simulated")
    config = RefineConfig(
        parser=str(exported(tmp_path / "model", short)),
        shards=str(short.folder),
        out=str(tmp_path / "labels.npz"),
        tracking=TrackingConfig(enabled=False, figures=False),
    )
    with pytest.raises(DataError, match="1 clips have fewer than 10 snippets, first clip 1"):
        refine(config)
