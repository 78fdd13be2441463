"""The rows: the configs, the encoder and the commands of each."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from avvp_dist.commit import sha256, write_json
from avvp_dist.config import FinetuneConfig, PretrainConfig, TablesConfig, TrackingConfig
from avvp_dist.config.files import load
from avvp_dist.errors import ConfigError
from avvp_dist.grounding.summary import GroundingSummary, LabelFile
from avvp_dist.grounding.version import Grounding
from avvp_dist.reproduction.jobs import Job
from avvp_dist.reproduction.paper_tables import PAPER
from avvp_dist.reproduction.rows import ROWS, chosen_rows, encoder_jobs, row_jobs
from avvp_dist.shards.shard_set import ShardSet

PLAIN = ("base", "base_gcaa", "base_adv_skip", "base_adv_skip_gcaa")


@pytest.fixture(scope="module")
def shards(
    packed: dict[str, ShardSet], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ShardSet]:
    """The packed splits, and train as if it was grounded."""
    ignored = shutil.ignore_patterns("grounding")
    folder = tmp_path_factory.mktemp("rows") / "train"
    train = ShardSet(shutil.copytree(packed["train"].folder, folder, ignore=ignored))
    grounded_as("or", train)
    return {**packed, "train": train}


def grounded_as(version: str, shards: ShardSet) -> None:
    """Give a shard set a grounding of one component a clip, in place of the one it has."""
    shutil.rmtree(shards.folder / "grounding", ignore_errors=True)
    folder = shards.folder / "grounding" / version
    folder.mkdir(parents=True)
    for shard in shards.shards:
        np.save(folder / f"{shard.stem}.npy", np.zeros((shard.clips, 10), np.uint8))
    files = [
        LabelFile(f"{shard.stem}.npy", shard.clips, sha256(folder / f"{shard.stem}.npy"))
        for shard in shards.shards
    ]
    summary = GroundingSummary(version, shards.content, files)
    write_json(folder / "grounding.json", summary.plain())


def jobs_of(
    shards: dict[str, ShardSet], features: Path, out: Path, **keys: Any
) -> tuple[dict[str, Job], dict[tuple[str, int], Job]]:
    """The jobs of encoders and rows."""
    config = TablesConfig(
        shards="-",
        annotations=str(features),
        pretraining=str(shards["train"].folder),
        **{"seeds": 1, "tracking": TrackingConfig(enabled=False, figures=False), **keys},
    )
    rows = chosen_rows(config)
    encoders = encoder_jobs(config, out, rows)
    return encoders, row_jobs(config, out, rows, shards, encoders)


def parser_config(job: Job) -> FinetuneConfig:
    """The config of a row's own training, which comes before its evaluation."""
    config: FinetuneConfig = job.commands[-2].config
    return config


# Which rows there are.


def test_every_row_has_its_configs() -> None:
    for row in ROWS.values():
        extra = [name for name in (row.refines, row.released) if name]
        keys = ["data.train=a", "data.val=b", "data.annotations=c", "trainer.out=d"]
        for name in (row.file, *extra):
            load(FinetuneConfig, f"finetune/{name}", keys)
    for name in {row.encoder for row in ROWS.values()} - {"", "untrained"}:
        keys = ["data.shards=a", "trainer.out=b"]
        load(PretrainConfig, f"pretrain/{name}", keys)
    load(PretrainConfig, "pretrain/released", keys)


def test_every_row_of_the_paper_has_its_own() -> None:
    named = [row.paper for row in ROWS.values() if row.paper]
    assert set(named) == set(PAPER)
    methods = Counter(row.method for row in ROWS.values())
    assert max(methods.values()) == 1


def test_rows_are_made_in_the_order_of_the_tables() -> None:
    config = TablesConfig(rows=["base", "untrained", "han"])
    assert list(chosen_rows(config)) == ["han", "base", "untrained"]
    assert chosen_rows(TablesConfig()) == ROWS


@pytest.mark.parametrize("key", ["rows", "compare"])
def test_an_unknown_row_is_named_with_its_key(key: str) -> None:
    config = TablesConfig(**{key: ["han", "hann"]})
    with pytest.raises(ConfigError, match=rf"^{key}: there is no row hann, there are han, ma, "):
        chosen_rows(config)


# What a row is made of.


def test_ma_refines_its_labels_and_trains_on_them(
    shards: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    _, jobs = jobs_of(shards, features, tmp_path, rows=["ma"])
    first, refine, second, judge = jobs["ma", 1].commands
    assert [s.stage for s in jobs["ma", 1].commands] == [
        "finetune",
        "refine",
        "finetune",
        "evaluate",
    ]
    assert first.config.loss.lambda_contrastive == 1 and not first.config.data.refined_labels
    assert refine.config.parser == f"{first.config.trainer.out}/model"
    assert refine.config.shards == first.config.data.train == second.config.data.train
    assert second.config.data.refined_labels == refine.config.out
    assert judge.config.parser == f"{second.config.trainer.out}/model"
    assert len({command.out for command in jobs["ma", 1].commands}) == 4


def test_the_other_rows_train_and_are_scored(
    shards: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    _, jobs = jobs_of(shards, features, tmp_path)
    assert {name for name, _ in jobs} == set(ROWS)
    for (name, _), job in jobs.items():
        kinds = (
            ["finetune", "evaluate"]
            if name != "ma"
            else [command.stage for command in job.commands]
        )
        assert [command.stage for command in job.commands] == kinds
        train, judge = job.commands[-2:]
        assert judge.config.parser == f"{train.config.trainer.out}/model"
        assert judge.config.shards == str(shards["test"].folder)
        assert train.config.data.val == str(shards["val"].folder)
        assert train.config.trainer.resume == "auto"
        for command in job.commands:
            assert command.out.parent == job.folder
            assert command.config.tracking.parent == str(job.folder)
            assert not command.config.tracking.register


def test_rows_with_an_encoder_wait_for_it(
    shards: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    encoders, jobs = jobs_of(shards, features, tmp_path)
    assert set(encoders) == {"uni", "cross", "multi", "untrained"}
    for (name, _), job in jobs.items():
        encoder = encoders.get(ROWS[name].encoder)
        assert job.needs is encoder
        checkpoint = parser_config(job).pretrained.checkpoint
        assert checkpoint == (f"{encoder.commands[0].out}/model" if encoder else "")
    for name, job in encoders.items():
        config: PretrainConfig = job.commands[0].config
        assert config.objective.name == ("multi" if name == "untrained" else name)
        assert config.data.shards == [str(shards["train"].folder)]
        untrained = (config.optimizer.lr, config.trainer.max_steps) == (0, 1)
        assert untrained == (name == "untrained")


def test_rows_without_an_encoder_need_no_grounding(
    packed: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    train = shutil.copytree(packed["train"].folder, tmp_path / "train")
    shutil.rmtree(train / "grounding", ignore_errors=True)
    splits = {**packed, "train": ShardSet(train)}
    encoders, jobs = jobs_of(splits, features, tmp_path, rows=["han", "base"])
    assert encoders == {} and [job.needs for job in jobs.values()] == [None, None]
    assert not (train / "grounding").exists()


@pytest.mark.launch
@pytest.mark.parametrize("before", ["nothing", "own thresholds", "cut off"])
def test_rows_with_an_encoder_find_their_clips_grounded(
    before: str,
    packed: dict[str, ShardSet],
    features: Path,
    tmp_path: Path,
    one_ray: None,
) -> None:
    ignored = shutil.ignore_patterns("grounding", "thresholds.*")
    train = shutil.copytree(packed["train"].folder, tmp_path / "train", ignore=ignored)
    if before == "cut off":  # as a job that was killed before its first shard leaves it
        (train / "grounding" / "or").mkdir(parents=True)
    if before == "own thresholds":
        chosen = {"thresholds": {"audio": 0.9, "visual": 0.9}, "extractor": "simulated"}
        OmegaConf.save(OmegaConf.create(chosen), train / "thresholds.yaml")
    shards = {**packed, "train": ShardSet(train)}
    jobs_of(shards, features, tmp_path, rows=["untrained"])
    thresholds = Grounding(ShardSet(train)).summary.plan.thresholds
    assert (thresholds == {"audio": 0.9, "visual": 0.9}) == (before == "own thresholds")


def test_keys_reach_every_training(
    shards: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    keys = {
        "finetune": ["trainer.epochs=7", "parser.width=24"],
        "pretrain": ["encoder.size=tiny", "trainer.epochs=3"],
    }
    encoders, jobs = jobs_of(shards, features, tmp_path, **keys)
    trained = [
        command.config
        for job in jobs.values()
        for command in job.commands
        if command.stage == "finetune"
    ]
    assert len(trained) == len(ROWS) + 1  # MA trains twice
    assert {(c.trainer.epochs, c.parser.width) for c in trained} == {(7, 24)}
    found = {
        (e.commands[0].config.encoder.size, e.commands[0].config.trainer.epochs)
        for e in encoders.values()
    }
    assert found == {("tiny", 3)}


@pytest.mark.parametrize("key", ["finetune", "pretrain"])
def test_a_wrong_key_for_a_training_is_found_before_any_starts(
    key: str, shards: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"unknown key optimizer\.lrr"):
        jobs_of(shards, features, tmp_path, **{key: ["optimizer.lrr=1"]})


def test_annotations_and_rule_reach_every_stage(
    shards: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    keys = {"audio_annotations": "2020", "rule": "modality"}
    _, jobs = jobs_of(shards, features, tmp_path, **keys)
    for job in jobs.values():
        judge = job.commands[-1].config
        assert (judge.audio_annotations, judge.rule) == ("2020", "modality")
        for command in job.commands:
            if command.stage == "finetune":
                assert command.config.data.audio_annotations == "2020"
                assert command.config.data.annotations == judge.annotations == str(features)


def test_seeds_differ_in_their_seed_and_folders_only(
    shards: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    _, jobs = jobs_of(shards, features, tmp_path, seeds=3)
    assert len({job.folder for job in jobs.values()}) == len({j.name for j in jobs.values()}) == 39
    for name in ROWS:
        configs = [parser_config(jobs[name, seed]) for seed in (1, 2, 3)]
        assert [config.trainer.seed for config in configs] == [1, 2, 3]
        assert len({str(config.parser) for config in configs}) == 1
    refining = [jobs["ma", seed].commands[1].config.seed for seed in (1, 2, 3)]
    assert refining == [1, 2, 3]


# What counts as a change.


def test_other_annotations_or_features_make_every_row_anew(
    shards: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    _, before = jobs_of(shards, features, tmp_path)
    _, again = jobs_of(shards, features, tmp_path)
    assert [job.keys for job in again.values()] == [job.keys for job in before.values()]
    csvs = shutil.copytree(features, tmp_path / "csvs", ignore=shutil.ignore_patterns("*.npz"))
    _, same = jobs_of(shards, csvs, tmp_path)
    with (csvs / "AVVP_eval_audio.csv").open("a") as file:
        file.write("SIMte000000_0_10\t0\t1\tDog\n")
    _, other = jobs_of(shards, csvs, tmp_path)
    assert all(a.keys[0] != b.keys[0] for a, b in zip(same.values(), other.values(), strict=True))
    _, swapped = jobs_of({**shards, "test": shards["val"]}, features, tmp_path)
    pairs = zip(before.values(), swapped.values(), strict=True)
    assert all(a.inputs != b.inputs for a, b in pairs)


def test_another_encoder_makes_the_rows_on_it_anew(
    shards: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    _, before = jobs_of(shards, features, tmp_path)
    _, after = jobs_of(shards, features, tmp_path, pretrain=["encoder.size=tiny"])
    changed = {name for name, seed in before if before[name, seed].keys != after[name, seed].keys}
    assert changed == {name for name, row in ROWS.items() if row.encoder}


def test_another_grounding_makes_the_encoders_and_the_rows_on_them_anew(
    shards: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    train = ShardSet(shutil.copytree(shards["train"].folder, tmp_path / "train"))
    own = {**shards, "train": train}
    encoders, before = jobs_of(own, features, tmp_path)
    grounded_as("and", train)
    anew, after = jobs_of(own, features, tmp_path)
    assert all(encoders[name].keys != anew[name].keys for name in encoders)
    changed = {name for name, seed in before if before[name, seed].keys != after[name, seed].keys}
    assert changed == {name for name, row in ROWS.items() if row.encoder}


# The released code.


def test_released_rows_are_as_the_authors_code_has_them(
    shards: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    encoders, jobs = jobs_of(shards, features, tmp_path, released=True)
    for (name, _), job in jobs.items():
        config = parser_config(job)
        if name.endswith("_mmil"):
            found = (config.optimizer.lr, config.optimizer.schedule, config.trainer.batch_size)
            assert found == (1e-6, "constant", 64)
        elif name not in ("han", "ma"):
            assert config.parser.gcaa_first_snippet
            assert (config.loss.lambda_guided, config.loss.lambda_adversarial) == (0.3, 0.3)
            assert (config.optimizer.lr, config.optimizer.decay_every) == (6e-4, 6)
    for job in encoders.values():
        config = job.commands[0].config
        assert config.objective.positive_margin == config.objective.negative_margin == 0.7
        assert config.objective.anchors == "shared" and config.objective.alternate
        assert config.encoder.frozen_positions and config.encoder.mask_vectors
        assert config.encoder.visual_tokens == "separate"
    assert encoders["multi"].commands[0].config.optimizer.lr == 1e-6
    assert encoders["untrained"].commands[0].config.optimizer.lr == 0


def test_han_and_ma_are_the_same_when_released(
    shards: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    _, ours = jobs_of(shards, features, tmp_path)
    _, released = jobs_of(shards, features, tmp_path, released=True)
    same = {name for name, seed in ours if ours[name, seed].keys == released[name, seed].keys}
    assert same == {"han", "ma"}


def test_a_key_of_the_user_counts_more_than_the_released_code(
    shards: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    keys = {"finetune": ["optimizer.lr=0.5"], "pretrain": ["optimizer.lr=0.25"]}
    encoders, jobs = jobs_of(shards, features, tmp_path, released=True, **keys)
    assert {parser_config(job).optimizer.lr for job in jobs.values()} == {0.5}
    rates = {name: job.commands[0].config.optimizer.lr for name, job in encoders.items()}
    assert rates == {"uni": 0.25, "cross": 0.25, "multi": 0.25, "untrained": 0}
