"""Pretraining: two ranks that train, resume and refuse; the rest in this process."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from avvp_dist.config import (
    DecontaminateConfig,
    EncoderConfig,
    GroundConfig,
    ObjectiveConfig,
    PretrainConfig,
    TrackingConfig,
)
from avvp_dist.decontamination.job import decontaminate
from avvp_dist.errors import ConfigError
from avvp_dist.grounding.job import ground
from avvp_dist.grounding.version import Grounding
from avvp_dist.loading.loader import read_clips
from avvp_dist.loading.mixture import Mixture
from avvp_dist.models.export import load_encoder
from avvp_dist.models.grounding_model import GroundingModel
from avvp_dist.objectives.grounding import grounding_loss, unit
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.shards.schema import PADDING, Clip
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.pretraining import PretrainingTask, pretrain
from avvp_dist.tracking.records import RegisterRecord, RunRecord, read_records, read_series
from avvp_dist.training.task import StepInfo

pytestmark = pytest.mark.launch

STEPS = 20
KEYS = (
    *(f"trainer.max_steps={STEPS}", "trainer.batch_size=16", "trainer.log_every=1"),
    *("trainer.checkpoint_every=4", "encoder.size=tiny", "data.heldout=0.1"),
    *("tracking.enabled=false", "tracking.figures=false"),
)
START = StepInfo(0, 0, 0.0)
OFF = TrackingConfig(enabled=False, figures=False)


def finish(process: Any) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def undisturbed(grounded: ShardSet, fork_ranks: Any, tmp_path_factory: Any) -> Path:
    out: Path = tmp_path_factory.mktemp("undisturbed")
    keys = (f"data.shards={grounded.folder}", f"trainer.out={out}", *KEYS, "tracking.figures=true")
    code, _, err = finish(fork_ranks("launch/pretrain.py", *keys))
    assert code == 0, err
    return out


def test_two_ranks_train_and_export_and_are_not_overwritten(
    undisturbed: Path, grounded: ShardSet, fork_ranks: Any
) -> None:
    series = read_series(undisturbed)
    assert list(series["train/loss"]) == list(range(1, STEPS + 1))
    assert set(series) >= {
        *("val/auc", "val/auc_audio", "val/auc_visual", "val/auc_cross"),
        *("train/lr", "train/clips_per_second"),
    }
    assert series["train/loss"][STEPS] < series["train/loss"][1]
    _, spec = load_encoder(undisturbed / "model")
    assert spec.dims == grounded.dims and spec.manifest == grounded.digest
    assert (undisturbed / "curves.png").stat().st_size > 10_000
    keys = (f"data.shards={grounded.folder}", f"trainer.out={undisturbed}", *KEYS)
    code, _, err = finish(fork_ranks("launch/pretrain.py", *keys, ranks=1))
    assert code == 4
    assert f"error: {undisturbed} already holds a run" in err


def test_damaged_checkpoints_are_named_and_never_a_fresh_start(
    undisturbed: Path, grounded: ShardSet, fork_ranks: Any
) -> None:
    *_, before, newest = sorted((undisturbed / "checkpoints").glob("step-*"))
    file = next((newest / "state").iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    keys = (f"data.shards={grounded.folder}", f"trainer.out={undisturbed}", *KEYS)
    code, out, err = finish(fork_ranks("launch/pretrain.py", *keys, "trainer.resume=auto"))
    assert code == 0
    assert err.count(f"checkpoint {newest} is damaged: {file} has") == 1
    assert "resumed at step 16" in out
    assert out.count("2 ranks on 1 host: CPU, 1 thread each, gloo\n") == 1
    shutil.rmtree(before.parent)
    code, _, err = finish(fork_ranks("launch/pretrain.py", *keys, "trainer.resume=auto"))
    assert code == 4
    assert err.count("has records of checkpoints, but there is none any more") == 1


def config_of(shards: ShardSet, out: Path) -> PretrainConfig:
    """Three epochs of two steps, with all that the authors' code does otherwise."""
    config = PretrainConfig()
    config.data.shards, config.trainer.out = [str(shards.folder)], str(out)
    config.data.heldout, config.trainer.batch_size = 0.2, 32
    config.encoder = EncoderConfig(
        "tiny", visual_tokens="separate", frozen_positions=True, mask_vectors=True
    )
    config.objective = ObjectiveConfig(anchors="shared", alternate=True)
    config.trainer.epochs = config.trainer.keep = 3
    config.tracking.enabled = config.tracking.figures = False
    return config


def test_the_validation_loss_is_that_of_the_exported_encoder(
    grounded: ShardSet, one_rank: None, tmp_path: Path
) -> None:
    config = config_of(grounded, tmp_path)
    pretrain(config)
    losses = read_series(tmp_path)["val/loss"]
    assert list(losses) == [2, 4, 6]
    encoder, _ = load_encoder(tmp_path / "model")
    grounding = Grounding(grounded)
    heldout = PretrainingTask(config, Mixture([grounded]), [grounding]).heldout
    assert 5 < len(heldout) < 40
    streams = {n: torch.from_numpy(x).float() for n, x in grounded.gather(heldout).items()}
    components = torch.from_numpy(grounding.components[heldout])
    # Neither draws nor takes turns: epochs are compared by it.
    objective = replace(config.objective, anchors="all", alternate=False, other_clips=0.0)
    with torch.no_grad():
        x = unit(*encoder.eval()(streams))
        expected, _ = grounding_loss(x, components, objective, lambda: pytest.fail("unweighted"))
    assert losses[6] == pytest.approx(float(expected), rel=1e-4)
    (tags,) = (r.tags for r, _ in read_records(tmp_path) if isinstance(r, RegisterRecord))
    assert float(tags["val/loss"]) == pytest.approx(losses[6], rel=1e-5)
    assert float(tags["val/auc"]) == pytest.approx(read_series(tmp_path)["val/auc"][6], rel=1e-5)
    assert tags.keys() >= {"manifest", "grounding", "objective", "validated_on.clips", "digest"}
    assert tags["clips_seen"] == str(6 * config.trainer.batch_size)


def test_the_epoch_of_the_lowest_validation_loss_is_exported(
    grounded: ShardSet, one_rank: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    losses, epochs = iter([3.0, 1.0, 2.0]), []
    validate, forward = PretrainingTask.validate, GroundingModel.forward

    def validated(task: PretrainingTask) -> dict[str, float]:
        return {**validate(task), "val/loss": next(losses)}

    def told(model: GroundingModel, batch: Any) -> Any:
        epochs.append(batch.epoch)
        return forward(model, batch)

    monkeypatch.setattr(PretrainingTask, "validate", validated)
    monkeypatch.setattr(GroundingModel, "forward", told)
    config = config_of(grounded, tmp_path)
    config.trainer.export, config.objective.name = "best", "cross"
    pretrain(config)
    assert epochs[1:] == [0, 0, 1, 1, 2, 2]  # the first forward pass is only counted
    exported = load_file(tmp_path / "model" / "model.safetensors")
    (file,) = (tmp_path / "checkpoints" / "step-00000004").rglob("*model_states.pt")
    second = torch.load(file, map_location="cpu", weights_only=False)["module"]
    assert second.keys() == {f"encoder.{name}" for name in exported}
    assert all(torch.equal(exported[name], second[f"encoder.{name}"]) for name in exported)
    (record,) = (r for r, _ in read_records(tmp_path) if isinstance(r, RegisterRecord))
    assert (record.aliases, record.tags["objective"]) == (["candidate", "cross"], "cross")


LLP = ["4O9rI-FpqLg_1_11", "4YdbENYcIyE_0_10", "KSRjje7GH44_0_10"]
"""Clips of one validation video of LLP and of two of its test videos."""


@pytest.fixture(scope="module")
def contaminated(grounded: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The clips of `grounded`, of which three are LLP's, with a grounding."""
    streams = grounded.gather(np.arange(96))
    ids = [*grounded.ids[:93], *LLP]
    made = (Clip(one, {k: x[n] for k, x in streams.items()}) for n, one in enumerate(ids))
    out = tmp_path_factory.mktemp("contaminated") / "set"
    shards = write_shard_set(made, out, clips_per_shard=40, extractor="simulated")
    shutil.copy(grounded.folder / "thresholds.yaml", out)
    ground(GroundConfig(shards=str(out), workers=1, tracking=OFF))
    return shards


def test_clips_of_llps_held_out_videos_are_refused(
    contaminated: ShardSet, fork_ranks: Any, tmp_path: Path
) -> None:
    keys = (f"data.shards={contaminated.folder}", f"trainer.out={tmp_path}", *KEYS)
    code, _, err = finish(fork_ranks("launch/pretrain.py", *keys, ranks=1))
    assert code == 3
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert (
        f"{contaminated.name} holds clips of held-out videos: 2 of llp test, 1 of llp val" in line
    )
    assert f"first {LLP[0]}" in line
    assert f"avvp decontaminate shards={contaminated.name}" in line
    assert not list(tmp_path.iterdir())


def test_contamination_that_is_allowed_is_on_record(
    contaminated: ShardSet, one_rank: None, tmp_path: Path
) -> None:
    config = config_of(contaminated, tmp_path)
    config.data.allow_contaminated, config.trainer.epochs = True, 1
    pretrain(config)
    counts = {
        r.kind: r.tags["contaminated"]
        for r, _ in read_records(tmp_path)
        if isinstance(r, RunRecord | RegisterRecord)
    }
    assert counts == {"run": "3", "register": "3"}


def test_a_grounding_without_negatives_needs_them_from_elsewhere(
    grounded: ShardSet, one_rank: None, tmp_path: Path
) -> None:
    joined = GroundConfig(
        shards=str(grounded.folder),
        grouping="clip",
        out=str(tmp_path / "grounding"),
        workers=1,
        tracking=OFF,
    )
    config = config_of(grounded, tmp_path / "run")
    config.data.grounding = [str(ground(joined))]
    config.objective.other_clips = 0.0
    with pytest.raises(ConfigError, match=r"every clip of .* is one component: no pair is neg"):
        pretrain(config)
    config.objective.other_clips, config.trainer.epochs = 1.0, 1
    pretrain(config)


def test_excluded_clips_are_neither_trained_on_nor_held_out(
    contaminated: ShardSet, one_rank: None, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(contaminated.folder, tmp_path / "set"))
    decontaminate(
        DecontaminateConfig(shards=str(folder), duplicates=False, workers=1, tracking=OFF)
    )
    shards = ShardSet(folder)
    config = config_of(shards, tmp_path / "run")
    config.data.heldout = 0.5
    task = PretrainingTask(config, Mixture([shards]), [Grounding(shards)])
    seen = {*task.pools[0].clips.tolist(), *task.heldout.tolist()}
    assert seen == set(range(93))
    config.trainer.epochs = 1
    pretrain(config)
    (record,) = (r for r, _ in read_records(tmp_path / "run") if isinstance(r, RegisterRecord))
    assert "contaminated" not in record.tags


@pytest.mark.parametrize("hidden", [["motion"], ["audio"], ["visual"], ["visual", "audio"]])
def test_streams_that_cannot_be_hidden_are_named(
    grounded: ShardSet, tmp_path: Path, hidden: list[str]
) -> None:
    config = config_of(grounded, tmp_path)
    config.data.hidden_streams = hidden
    with pytest.raises(ConfigError) as caught:
        PretrainingTask(config, Mixture([grounded]), [Grounding(grounded)])
    assert str(caught.value).startswith(f"data.hidden_streams={hidden}: ")


@pytest.mark.parametrize("heldout", [0.0, 1e-6])
def test_the_best_epoch_needs_held_out_clips(
    grounded: ShardSet, tmp_path: Path, heldout: float
) -> None:
    config = config_of(grounded, tmp_path)
    config.data.heldout = heldout
    PretrainingTask(config, Mixture([grounded]), [Grounding(grounded)])
    config.trainer.export = "best"
    with pytest.raises(ConfigError, match=r"trainer\.export=best .* data\.heldout"):
        PretrainingTask(config, Mixture([grounded]), [Grounding(grounded)])


class Halves:
    """A grounding: the first and the second half of every clip."""

    version, rule = "halves", "or"
    thresholds: dict[str, float] = {}  # noqa: RUF012
    components = np.array([[0, 0, 0, 1, 1, 1]] * 20, np.uint8)


def losses_of(folder: Path, hidden: list[str], tokens: str, changed: str) -> list[float]:
    """Training and validation loss of an untrained encoder, where one stream is `changed`."""
    rng, clips = np.random.default_rng(0), []
    for number in range(20):
        streams = {n: rng.normal(size=(6, 5)) for n in ("visual", "audio", "motion")}
        streams |= {changed: streams[changed][::-1]} if changed else {}
        clips.append(Clip(f"clip {number}", streams))
    shards = write_shard_set(clips, folder / f"{changed}.shards")
    config = config_of(shards, folder)
    config.encoder, config.data.hidden_streams = EncoderConfig("tiny", visual_tokens=tokens), hidden
    # Margins under which every pair counts.
    config.objective = ObjectiveConfig(positive_margin=1.0, negative_margin=-1.0)
    torch.manual_seed(0)
    task: Any = PretrainingTask(config, Mixture([shards]), [Halves()])  # type: ignore[list-item]
    task.module.eval()
    read, _ = read_clips(task.data, np.arange(20))
    loss, _ = task.module(task.make_batch(read, START))
    return [float(loss), task.validate()["val/loss"]]


@pytest.mark.parametrize("hidden", [[], ["motion"], ["visual"]])
@pytest.mark.parametrize("tokens", ["summed", "separate"])
@torch.no_grad()
def test_pretraining_does_not_see_hidden_streams(
    tmp_path: Path, tokens: str, hidden: list[str]
) -> None:
    plain = losses_of(tmp_path, hidden, tokens, "")
    for name in ("motion", "visual"):
        losses = losses_of(tmp_path, hidden, tokens, name)
        same = [ours == theirs for ours, theirs in zip(losses, plain, strict=True)]
        assert same == [name in hidden] * 2, name


def test_a_batch_knows_whose_its_clips_are_and_what_they_look_like(
    grounded: ShardSet, contaminated: ShardSet, tmp_path: Path
) -> None:
    config = config_of(grounded, tmp_path)
    config.trainer.precision = "bf16"
    groundings = [Grounding(grounded), Grounding(contaminated)]
    task = PretrainingTask(config, Mixture([grounded, contaminated]), groundings)
    assert [one.rule for one in task.link_rules] == ["or", "or"]
    assert task.link_rules[0].thresholds == groundings[0].thresholds != {}
    read, _ = read_clips(task.data, np.array([95, 96, 3, 191]))
    batch = task.make_batch(read, START)
    assert batch.clips.tolist() == [95, 96, 3, 191]
    assert batch.rule_index is not None and batch.rule_index.tolist() == [0, 1, 0, 1]
    assert task.model.compared == sorted(groundings[0].thresholds)
    for name, stored in batch.streams.items():
        assert stored.dtype == torch.float16 and torch.equal(stored, read.streams[name])
    assert batch.pool_rows[~batch.pool_empty].tolist() == [0, 1, 2, 3]
    empty = task.make_batch(dataclasses.replace(read, count=0), START)
    assert (empty.components == PADDING).all()


@pytest.mark.parametrize("changed", [{"other_clips": 0.0}, {"false_negatives": "keep"}])
def test_nothing_is_compared_that_is_not_left_out(
    grounded: ShardSet, tmp_path: Path, changed: dict[str, Any]
) -> None:
    config = config_of(grounded, tmp_path)
    config.objective = replace(config.objective, **changed)
    task = PretrainingTask(config, Mixture([grounded]), [Grounding(grounded)])
    read, _ = read_clips(task.data, np.arange(3))
    assert not task.link_rules
    batch = task.make_batch(read, START)
    assert (task.model.compared, batch.rule_index) == ([], None)


def test_the_controls_of_grounding_leave_no_negative_out(
    grounded: ShardSet, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"grouping": "snippet", "out": str(tmp_path), "workers": 1}
    place = ground(GroundConfig(shards=str(grounded.folder), tracking=OFF, **keys))
    control = Grounding(grounded, place)
    assert control.thresholds == {}
    task = PretrainingTask(config_of(grounded, tmp_path), Mixture([grounded]), [control])
    assert task.link_rules == []


def test_a_collapse_is_said(
    grounded: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(grounded, tmp_path)
    task = PretrainingTask(config, Mixture([grounded]), [Grounding(grounded)])
    task.module.eval()
    healthy = task.validate()
    assert "collapsed" not in capsys.readouterr().out
    assert healthy["val/rank_audio"] > 2 and healthy["val/rank_visual"] > 2
    torch.nn.init.zeros_(task.encoder.norm.weight)
    torch.nn.init.ones_(task.encoder.norm.bias)
    found = task.validate()
    assert found["val/spread_audio"] < 1e-3
    assert found["val/rank_visual"] == pytest.approx(1, abs=1e-2)
    said = capsys.readouterr().out
    assert "warning: the audio representations have collapsed" in said
    assert "the visual representations" in said and "Lower optimizer.lr" in said


def test_held_out_clips_that_cannot_be_read_do_not_count(
    grounded: ShardSet, one_rank: None, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(grounded.folder, tmp_path / "train"))
    (folder / "shard-000001.tar").unlink()
    config = config_of(grounded, tmp_path)
    config.data.heldout, config.data.max_bad_fraction = 0.5, 0.5
    found = []
    for shards in (grounded.folder, folder):
        torch.manual_seed(0)
        data = Mixture.open([str(shards)], [], config.data)
        task = PretrainingTask(config, data, [Grounding(grounded)])
        task.module.eval()
        if shards == grounded.folder:
            task.heldout = np.array([n for n in task.heldout if n not in range(40, 80)])
        found.append(task.validate())
    assert found[0] == pytest.approx(found[1])
