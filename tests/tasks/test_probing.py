"""Probes: figures of an encoder during pretraining and by itself, on one rank and on two."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from avvp_dist.config import EncoderConfig, PretrainConfig
from avvp_dist.errors import DataError
from avvp_dist.loading.mixture import Mixture
from avvp_dist.models.export import load_spec
from avvp_dist.models.specification import EncoderSpec
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.pretraining import open_pretraining, pretrain
from avvp_dist.tasks.probing import (
    PANELS,
    encoder_figures,
    open_probe_set,
    open_unseen,
    probe,
    random_encoder,
    raw_figures,
)
from avvp_dist.tracking.records import read_series
from tests.forked_ranks import fork_server

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
TINY = EncoderConfig("tiny")


def config_of(
    train: ShardSet, probed: ShardSet, annotations: Path | str, out: Path
) -> PretrainConfig:
    """Two epochs of two steps."""
    config = PretrainConfig()
    config.data.shards, config.trainer.out = [str(train.folder)], str(out)
    config.data.probe, config.data.probe_annotations = str(probed.folder), str(annotations)
    config.data.heldout, config.trainer.batch_size, config.trainer.epochs = 0.2, 32, 2
    config.encoder = TINY
    config.tracking.enabled = config.tracking.figures = False
    return config


def clip(name: str, labels: tuple[str, ...] | None, seed: int = 0) -> Clip:
    rng = np.random.default_rng(seed)
    streams = {"audio": rng.normal(size=(10, 6)), "visual": rng.normal(size=(10, 8))}
    return Clip(name, streams, labels)


def labelled(out: Path, names: list[str]) -> ShardSet:
    """Clips with one of two labels in turns."""
    return write_shard_set(
        [clip(name, (("Dog", "Car")[n % 2],), n) for n, name in enumerate(names)],
        out,
        extractor="made",
    )


NAMES = [f"probe {n}" for n in range(40)]


@pytest.fixture(scope="module")
def labelled_seconds(
    packed: dict[str, ShardSet], tmp_path_factory: pytest.TempPathFactory
) -> ShardSet:
    """The 48 clips of the validation and test split in one set."""
    clips = (
        Clip(shards.id(n), {name: x[0] for name, x in shards.gather(np.array([n])).items()}, labels)
        for shards in (packed["val"], packed["test"])
        for n, labels in enumerate(shards.labels)
    )
    return write_shard_set(clips, tmp_path_factory.mktemp("probed"), extractor="simulated")


@pytest.mark.launch
def test_a_pretraining_logs_the_figures_and_exports_them(
    grounded: ShardSet,
    labelled_seconds: ShardSet,
    features: Path,
    one_rank: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config_of(grounded, labelled_seconds, features, tmp_path)
    pretrain(config)
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if line.startswith("probe of ")]
    assert [line.split(":")[0].removeprefix("probe of ") for line in lines] == [
        *("raw features", "a random encoder", "the encoder", "the encoder")
    ]
    series = {name: list(points.values()) for name, points in read_series(tmp_path).items()}
    probes = {name: values for name, values in series.items() if name.startswith("val/probe_")}
    assert len(probes) == 3 * 11 and all(len(values) == 2 for values in probes.values())
    assert {name for _, names, _ in PANELS for name in names} <= probes.keys()
    for name, (first, second) in probes.items():
        assert (first == second) == ("raw_" in name or "random_" in name), name
    spec = load_spec(tmp_path / "model", EncoderSpec)
    assert {name: values[-1] for name, values in probes.items()}.items() <= spec.validated.items()
    alone = probe(tmp_path / "model", labelled_seconds.name, annotations=str(features))
    last = {name: probes[f"val/probe_{name}"][-1] for name in alone.metrics()}
    assert alone.metrics() == pytest.approx(last, abs=1e-4)


def test_a_pretraining_without_held_out_clips_can_be_probed(
    grounded: ShardSet, packed: dict[str, ShardSet], tmp_path: Path
) -> None:
    config = config_of(grounded, packed["val"], "", tmp_path)
    config.data.heldout = 0.0
    task = open_pretraining(config, lambda: ALONE)
    task.module.eval()
    metrics = task.validate()
    assert set(metrics) == {
        f"val/probe_{who}{figure}"
        for who in ("", "raw_", "random_")
        for figure in ("clip_map", "clip_auc_audio", "clip_auc_visual")
    }
    assert task.score(metrics) == 0.0
    assert task.inputs[packed["val"].name] == packed["val"].digest
    assert dict(task.plan())["probe"].startswith(f"24 clips of {packed['val'].name}, ")


def figures_on(ranks: Ranks, place: str, annotations: str) -> list[dict[str, float]]:
    """Figures of an encoder and of raw features on 47 clips."""
    probed = open_probe_set(place, annotations=annotations, maximum=47)
    dims, snippets = probed.shards.dims, probed.shards.snippets
    encoder = random_encoder(TINY, dims, snippets, 0)
    both = encoder_figures(probed, encoder, ranks), raw_figures(probed, ranks)
    return [figures.metrics() for figures in both]


def run_rank(rank: int, size: int, folder: Path, place: str, annotations: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    found = figures_on(Ranks(rank, size, CPU), place, annotations)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


@pytest.mark.launch
def test_two_ranks_find_what_one_finds(
    labelled_seconds: ShardSet, features: Path, tmp_path: Path
) -> None:
    place = (labelled_seconds.name, str(features))
    processes = [
        fork_server().Process(target=run_rank, args=(n, 2, tmp_path, *place)) for n in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    first, second = (pickle.loads((tmp_path / f"{n}.pickle").read_bytes()) for n in range(2))
    assert first == second
    for two, one in zip(first, figures_on(ALONE, *place), strict=True):
        assert len(two) == 11 and two == pytest.approx(one, abs=1e-4)


def test_the_random_encoder_depends_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    states = [random_encoder(TINY, {"audio": 3, "visual": 4}, 5, s).state_dict() for s in (1, 1, 2)]
    one, again, other = (state["embed.audio.weight"] for state in states)
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_hidden_streams_are_not_probed(tmp_path: Path) -> None:
    """Neither in the features nor by an encoder."""
    found = []
    for motion in (1.0, -1.0):
        clips = [
            replace(
                one := clip(name, (("Dog", "Car")[n % 2],), n),
                streams={**one.streams, "motion": motion * one.streams["visual"][::-1]},
            )
            for n, name in enumerate(NAMES)
        ]
        probed = open_probe_set(str(write_shard_set(clips, tmp_path / str(motion)).folder))
        encoder = random_encoder(TINY, probed.shards.dims, 10, 0)
        hidden = ["motion"]
        raw = raw_figures(probed, ALONE, hidden).metrics()
        found.append([encoder_figures(probed, encoder, ALONE, hidden).metrics(), raw])
        assert raw != raw_figures(probed, ALONE).metrics()
    assert found[0] == found[1]


def test_clips_are_chosen_by_id_and_those_of_a_video_share_a_fold(tmp_path: Path) -> None:
    names = [f"{'AAAAAAAAAA'}{letter}_{n}_{n + 4}" for letter in "EIKQTABCDF" for n in range(4)]
    probed = open_probe_set(str(labelled(tmp_path, names).folder), maximum=30)
    hashes, chosen = probed.shards.hashes, probed.clips
    assert len(chosen) == 30 and hashes[chosen].max() < np.delete(hashes, chosen).min()
    folds: dict[str, set[int]] = {}
    for number, fold in zip(chosen.tolist(), probed.labels.folds.tolist(), strict=True):
        folds.setdefault(names[number][:11], set()).add(fold)
    assert all(len(one) == 1 for one in folds.values()) and len(set.union(*folds.values())) > 2


def test_labels_that_are_missing_or_too_few_are_named(tmp_path: Path, features: Path) -> None:
    none = write_shard_set([clip(name, None) for name in NAMES], tmp_path / "none")
    with pytest.raises(DataError, match=r"none: 40 clips have no weak labels, first probe 0"):
        open_probe_set(none.name)
    few = labelled(tmp_path / "few", NAMES[:2])
    with pytest.raises(DataError, match=r"few: none of its 2 classes is in enough of the 2 clips"):
        open_probe_set(few.name)
    good = labelled(tmp_path / "good", NAMES)
    with pytest.raises(DataError, match=r"lacks 40 of 40 probed clips, first probe 0") as caught:
        open_probe_set(good.name, annotations=str(features))
    assert "data.probe_annotations" in str(caught.value)


def test_features_of_other_backbones_are_named(
    grounded: ShardSet, packed: dict[str, ShardSet], tmp_path: Path
) -> None:
    data = Mixture([packed["train"]])
    other = labelled(tmp_path / "other", NAMES)
    config = config_of(grounded, other, "", tmp_path / "run")
    with pytest.raises(DataError, match=r"other has the extractor 'made', .* 'simulated'"):
        open_unseen(config.data, data)


def test_clips_of_videos_that_are_trained_on_are_refused(tmp_path: Path) -> None:
    train = labelled(tmp_path / "train", [*NAMES[:3], "AAAAAAAAAAA_0_4", "other"])
    clean = labelled(tmp_path / "clean", [f"{name}!" for name in NAMES])
    shared = labelled(tmp_path / "shared", [*NAMES[3:], "youtube/AAAAAAAAAAA_30_34.mp4"])
    config = PretrainConfig().data
    config.heldout, data = 0.0, Mixture([clean, train])
    config.probe = shared.name
    with pytest.raises(DataError) as caught:
        open_unseen(config, data)
    message = str(caught.value)
    assert f"data.probe: 1 clips of {train.name} that are trained on are cut from" in message
    assert "first AAAAAAAAAAA_0_4" in message
    assert f"avvp decontaminate shards={train.name} against=[{shared.name}]" in message
    found = open_unseen(config, Mixture([clean]))
    assert found is not None and len(found.clips) == 38
    config.probe = ""
    assert open_unseen(config, data) is None
