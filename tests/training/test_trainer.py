"""The train loop: ranks, damage, divergence, other data, a tracking server that is not there."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from avvp_dist.config import PretrainConfig
from avvp_dist.config.files import load
from avvp_dist.errors import CheckpointError, DataError, Preempted
from avvp_dist.grounding.version import Grounding
from avvp_dist.loading.loader import ClipBatch, read_clips
from avvp_dist.loading.mixture import Mixture
from avvp_dist.loading.stream import ClipStream
from avvp_dist.models.grounding_model import GroundingBatch
from avvp_dist.objectives.negative_pool import pool_places
from avvp_dist.packing.writing import write_shard_set
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.shards.schema import Clip
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.pretraining import PretrainingTask, pretrain
from avvp_dist.tracking.records import read_series
from avvp_dist.training import trainer
from avvp_dist.training.engine import lr_factor, update
from avvp_dist.training.outcome import StepLosses, StepOutcome
from avvp_dist.training.task import StepInfo
from avvp_dist.training.trainer import Trainer
from tests.training.operations import Operations

pytestmark = pytest.mark.launch

KEYS = (
    *("encoder.size=tiny", "trainer.max_steps=3", "trainer.batch_size=16", "trainer.log_every=1"),
    "tracking.figures=false",
)


def start(fork_ranks: Any, shards: ShardSet, out: Path, *keys: str, **options: Any) -> Any:
    data = (f"data.shards={shards.folder}", f"trainer.out={out}")
    process = fork_ranks("launch/pretrain.py", *data, *KEYS, *keys, **options)
    _, err = process.communicate(timeout=240)
    return process.returncode, err


def test_a_dead_mlflow_server_costs_one_line_and_no_step(
    grounded: ShardSet, fork_ranks: Any, tmp_path: Path
) -> None:
    code, err = start(fork_ranks, grounded, tmp_path, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert code == 0
    lines = [line for line in err.splitlines() if line.startswith("MLflow:")]
    assert len(lines) == 2, err
    assert "does not answer (" in lines[0] and "; the run goes on" in lines[0]
    assert f"avvp sync {tmp_path}" in lines[1]
    assert list(read_series(tmp_path)["train/loss"]) == [1, 2, 3]


def test_ranks_and_zero_stages_train_alike(
    grounded: ShardSet, fork_ranks: Any, tmp_path: Path
) -> None:
    variants: dict[str, tuple[int, tuple[str, ...]]] = {
        "one rank": (1, ()),
        "two ranks": (2, ()),
        "ZeRO 2": (2, ("trainer.zero_stage=2",)),
    }
    losses = []
    for name, (ranks, keys) in variants.items():
        # Negatives are those of the whole batch, anchors are drawn alike.
        fixed = ("tracking.enabled=false", "encoder.dropout=0", "objective.anchors=one", *keys)
        code, err = start(fork_ranks, grounded, tmp_path / name, *fixed, ranks=ranks)
        assert code == 0, err
        series = read_series(tmp_path / name)
        assert series["train/other"] and series["train/left_out"]
        losses.append(list(series["train/loss"].values()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)


def test_steps_that_diverge_are_skipped_and_then_too_many(
    grounded: ShardSet, fork_ranks: Any, tmp_path: Path
) -> None:
    keys = (
        "optimizer.lr=1e25",
        "optimizer.max_grad_norm=0",
        "optimizer.warmup=0",
        "tracking.enabled=false",
    )
    code, err = start(fork_ranks, grounded, tmp_path, *keys, "trainer.max_skipped=1", ranks=1)
    assert code == 6
    assert "step 1 is skipped: loss, own" in err
    (line,) = (line for line in err.splitlines() if line.startswith("error: step 2 is skipped"))
    assert "not finite on rank [0], clips " in line and "; 2 in a row. Lower optimizer.lr" in line


@pytest.mark.parametrize("stage", [0, 1])
def test_a_step_that_is_not_finite_is_skipped_and_names_its_clips(
    grounded: ShardSet,
    train_here: Any,
    tmp_path: Path,
    stage: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_batch, seen = PretrainingTask.make_batch, []

    def broken(task: PretrainingTask, clips: ClipBatch, info: StepInfo) -> GroundingBatch:
        seen.append(clips.clips)
        if len(seen) == 3:  # the first is only counted
            clips.buffer[5, 7] = float("nan")
        return make_batch(task, clips, info)

    monkeypatch.setattr(PretrainingTask, "make_batch", broken)
    fixed = (f"trainer.zero_stage={stage}", "tracking.enabled=false", "optimizer.warmup=0")
    train_here(grounded, tmp_path, *KEYS, *fixed)
    said = capsys.readouterr().err
    bad = grounded.ids[int(seen[2][5])]
    assert "step 1 is skipped: loss, own, other" in said
    assert f"not finite on rank [0], clips {bad}\n" in said
    series = read_series(tmp_path)
    assert list(series["train/loss"]) == [1, 3]  # the loss of the second is no number
    assert series["train/skipped_steps"] == {1: 0, 2: 1, 3: 1}
    assert 0 < series["train/loss"][3] < 2 * series["train/loss"][1]
    assert series["train/mfu"][3] > 0 and 0 <= series["train/data_wait"][3] < 1


def test_each_micro_batch_has_another_pool_of_negatives(
    grounded: ShardSet, train_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_batch, lent = PretrainingTask.make_batch, []

    def noted(task: PretrainingTask, clips: ClipBatch, info: StepInfo) -> GroundingBatch:
        batch = make_batch(task, clips, info)
        lent.append((info.step, info.micro_batch, tuple(batch.pool_rows.tolist())))
        return batch

    monkeypatch.setattr(PretrainingTask, "make_batch", noted)
    fixed = ("trainer.gradient_accumulation=2", "objective.negatives=3", "tracking.enabled=false")
    train_here(grounded, tmp_path, *KEYS, *fixed)
    seed = load(PretrainConfig, tmp_path / "config.yaml").trainer.seed
    places = [(step, micro) for step in range(3) for micro in range(2)]
    chosen = [(*place, tuple(pool_places(3, 8, seed, *place).tolist())) for place in places]
    assert lent[1 : len(places) + 1] == chosen  # the first is only counted
    assert len({rows for *_, rows in chosen}) > 2


@pytest.mark.gpu
def test_zero_stages_train_as_plain_torch_does_on_the_cpu(
    grounded: ShardSet, train_here: Any, tmp_path: Path
) -> None:
    on_gpu = torch.cuda.is_available()
    tolerances = {f"{stage} fp32": 1e-3 if on_gpu else 1e-6 for stage in range(4)}
    if on_gpu:  # many CPUs take seconds for a product in bf16
        tolerances |= {"0 tf32": 0.01, "0 bf16": 0.05, "1 bf16": 0.05, "3 bf16": 0.05}
    fixed = (*KEYS, "tracking.enabled=false", "encoder.dropout=0", "trainer.max_steps=5")
    for form in tolerances:
        stage, precision = form.split()
        keys = (f"trainer.zero_stage={stage}", f"trainer.precision={precision}")
        train_here(grounded, tmp_path / form, *fixed, *keys)
    config = load(PretrainConfig, tmp_path / "0 fp32" / "config.yaml")
    torch.manual_seed(config.trainer.seed)
    cpu = Ranks(0, 1, torch.device("cpu"))
    task = PretrainingTask(config, Mixture([grounded]), [Grounding(grounded)], cpu)
    adam = torch.optim.AdamW([{**vars(group)} for group in task.parameter_groups()])
    stream = ClipStream(task.pools, config.trainer.batch_size, seed=config.trainer.seed)
    losses = []
    for step in range(5):
        for group in adam.param_groups:
            group["lr"] = config.optimizer.lr * lr_factor(config.optimizer, step, 5, 5)
        read, _ = read_clips(task.data, stream.batch(step))
        loss, _ = task.module(task.make_batch(read, StepInfo(step, 0, 0.0)))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.module.parameters(), config.optimizer.max_grad_norm)
        adam.step()
        losses.append(float(loss.detach()))
    for form, tolerance in tolerances.items():
        ours = list(read_series(tmp_path / form)["train/loss"].values())
        assert ours == pytest.approx(losses, rel=tolerance), form


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_waits_for_the_device_once(
    grounded: ShardSet, train_here: Any, tmp_path: Path, precision: str, monkeypatch: Any
) -> None:
    waits, reads = [], []
    read, accumulate = StepOutcome.read, Trainer._accumulate

    def counted(trainer: Trainer, *arguments: Any) -> StepLosses:
        waits.append(operations.waits)
        return accumulate(trainer, *arguments)

    def noted(outcome: StepOutcome) -> dict[str, float]:
        reads.append((outcome.step, len(waits)))
        return read(outcome)

    monkeypatch.setattr(Trainer, "_accumulate", counted)
    monkeypatch.setattr(StepOutcome, "read", noted)
    with Operations() as operations:
        train_here(
            grounded,
            tmp_path,
            *(*KEYS, "tracking.enabled=false", f"trainer.precision={precision}"),
        )
    assert waits[0] == waits[-1]  # nothing in a step waits but the reading of an outcome
    # Each is read when the next step has been queued, and the last one at the end.
    assert reads == [(0, 2), (1, 3), (2, 3)]


def test_how_activations_are_kept_changes_no_loss(
    grounded: ShardSet, train_here: Any, tmp_path: Path
) -> None:
    for name, key in {"kept": "false", "again": "true"}.items():
        keys = ("tracking.enabled=false", f"trainer.activation_checkpointing={key}")
        train_here(grounded, tmp_path / name, *KEYS, *keys)
    losses = [read_series(tmp_path / name)["train/loss"] for name in ("kept", "again")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.gpu
def test_a_time_limit_preempts_and_the_next_run_goes_on(
    grounded: ShardSet, train_here: Any, tmp_path: Path
) -> None:
    keys = (*KEYS, "tracking.enabled=false", "trainer.resume=auto", "trainer.deterministic=true")
    train_here(grounded, tmp_path / "whole", *keys)
    out = tmp_path / "parts"
    with pytest.raises(Preempted, match=r"max_minutes, saved at step 2 of 3"):
        train_here(grounded, out, *keys, "trainer.max_minutes=1e-6")
    assert (out / "checkpoints" / "step-00000002").is_dir()
    train_here(grounded, out, *keys)
    assert read_series(out)["train/loss"] == read_series(tmp_path / "whole")["train/loss"]
    assert load(PretrainConfig, out / "config.yaml").trainer.max_steps == 3
    assert json.loads((out / "deepspeed.json").read_text())["train_batch_size"] == 16


OFF = ("tracking.enabled=false", "data.heldout=0.2", "trainer.log_every=100")


@pytest.mark.parametrize(
    ("keys", "validated", "saved"),
    [
        ((), [4, 5], [4, 5]),
        (("trainer.validate_every=2", "trainer.checkpoint_every=3"), [2, 4, 5], [3, 5]),
        (("trainer.checkpoint_minutes=1e-9",), [4, 5], [2, 4, 5]),  # asked one step late
        (("trainer.checkpoint_minutes=60", "trainer.validate_every=100"), [5], [5]),
    ],
)
def test_validations_and_checkpoints_have_their_own_schedules(
    grounded: ShardSet,
    train_here: Any,
    tmp_path: Path,
    keys: tuple[str, ...],
    validated: list[int],
    saved: list[int],
) -> None:
    train_here(grounded, tmp_path, *KEYS, *OFF, "trainer.max_steps=5", "trainer.keep=9", *keys)
    series = read_series(tmp_path)
    assert list(series["val/loss"]) == validated
    assert list(series["train/checkpoint_seconds"]) == saved
    folders = sorted((tmp_path / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == [f"step-{step:08d}" for step in saved]
    scores = [json.loads((folder / "manifest.json").read_text())["score"] for folder in folders]
    assert [score is not None for score in scores] == [step in validated for step in saved]


def test_steps_go_on_while_a_checkpoint_is_written(
    grounded: ShardSet, train_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (*KEYS, *OFF, "trainer.max_steps=4", "trainer.resume=auto", "trainer.max_minutes=1e-6")
    with pytest.raises(Preempted, match="saved at step 2 of 4"):
        train_here(grounded, tmp_path / "stopped", *keys)
    write, third, updates, saved = torch.save, threading.Event(), list[int](), list[int]()

    def held(*arguments: Any) -> None:
        assert third.wait(20)  # the disk takes the first checkpoint during the third step
        write(*arguments)

    def told(*arguments: Any) -> Any:
        updates.append(1)
        if len(updates) == 3:
            saved.append(len(list((tmp_path / "run").glob("checkpoints/step-*"))))
            third.set()
        return update(*arguments)

    monkeypatch.setattr(torch, "save", held)
    monkeypatch.setattr(trainer, "update", told)
    train_here(grounded, tmp_path / "run", *keys[:-1], "trainer.checkpoint_every=2")
    assert saved == [0]
    first, one = (
        json.loads((tmp_path / name / "checkpoints/step-00000002/manifest.json").read_text())
        for name in ("stopped", "run")
    )
    states = [name for name in first["files"] if name.startswith("state/")]
    assert states and all(first["files"][name] == one["files"][name] for name in states)


LAST = (
    *KEYS,
    "tracking.enabled=false",
    "encoder.dropout=0",
    "objective.other_clips=0",
    "data.last_batch=pad",
    "trainer.max_steps=0",
    "trainer.epochs=2",
    "trainer.batch_size=40",
)
"""Two epochs of 96 clips less the held out ones: the last batch is not whole."""


@pytest.fixture
def train_here(one_rank: None) -> Any:
    """Pretrain on one rank in this process."""

    def run(shards: ShardSet, out: Path, *keys: str) -> None:
        given = [f"data.shards={shards.folder}", f"trainer.out={out}", *keys]
        pretrain(load(PretrainConfig, None, given))

    return run


def same_weights(one: Path, two: Path) -> bool:
    first, second = (load_file(out / "model" / "model.safetensors") for out in (one, two))
    return max(float((second[n] - w).abs().max()) for n, w in first.items()) < 2e-5


def test_a_padded_batch_trains_alike_on_any_number_of_ranks(
    grounded: ShardSet, fork_ranks: Any, train_here: Any, tmp_path: Path
) -> None:
    one, four, two = (tmp_path / name for name in ("one", "micro", "two"))
    train_here(grounded, one, *LAST)
    train_here(grounded, four, *LAST, "trainer.gradient_accumulation=4")
    code, err = start(fork_ranks, grounded, two, *LAST)
    assert code == 0, err
    assert len(read_series(one)["train/loss"]) == 6
    assert same_weights(one, four) and same_weights(one, two)


def test_ranks_leave_out_the_same_clips_and_count_them(
    grounded: ShardSet, fork_ranks: Any, train_here: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(grounded.folder, tmp_path / "train"))
    tar = folder / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    damaged = ShardSet(folder)
    keys = (*LAST, "data.max_bad_fraction=0.5", "data.heldout=0")
    train_here(damaged, tmp_path / "one", *keys)
    code, err = start(fork_ranks, damaged, tmp_path / "two", *keys)
    assert code == 0, err
    assert "left out (40 of 96 clips): shard " in err and "another SHA-256" in err
    for name in ("one", "two"):
        assert set(read_series(tmp_path / name)["train/bad_clips"].values()) == {40}
    assert same_weights(tmp_path / "one", tmp_path / "two")
    with pytest.raises(DataError, match=r"shard-000001\.tar has another SHA-256"):
        train_here(damaged, tmp_path / "stopped", *LAST)
    with pytest.raises(DataError, match=r"40 of 96 clips cannot be read, more than .*=0\.1"):
        train_here(damaged, tmp_path / "stopped", *LAST, "data.max_bad_fraction=0.1")


def test_another_order_or_other_clips_are_not_resumed(
    grounded: ShardSet, train_here: Any, tmp_path: Path
) -> None:
    keys = (*KEYS, "tracking.enabled=false", "trainer.resume=auto", "trainer.log_every=100")
    train_here(grounded, tmp_path / "run", *keys)
    for key, named in (
        ("trainer.batch_size=8", r"trainer\.batch_size: 16 then, 8 now"),
        ("data.order=block", r"data\.order: global then, block of 8 now"),
    ):
        with pytest.raises(CheckpointError, match=f"other data or another order: .*{named}"):
            train_here(grounded, tmp_path / "run", *keys, key)
    changed = with_one_number_changed(grounded, tmp_path / "train")
    named = f"shard sets: \\['{grounded.digest}'\\] then, \\['{changed.digest}'\\] now"
    with pytest.raises(CheckpointError, match=named):
        train_here(changed, tmp_path / "run", *keys)


def with_one_number_changed(shards: ShardSet, out: Path) -> ShardSet:
    """A copy of a grounded shard set, told from it by its digest alone."""
    streams = shards.gather(np.arange(len(shards)))
    streams["audio"][3, 0, 0] += 1
    clips = (
        Clip(clip, {name: array[n] for name, array in streams.items()})
        for n, clip in enumerate(shards.ids)
    )
    changed = write_shard_set(clips, out, clips_per_shard=40, extractor=shards.extractor)
    shutil.copytree(shards.folder / "grounding", out / "grounding")
    (summary,) = out.glob("grounding/*/grounding.json")
    summary.write_text(summary.read_text().replace(shards.digest, changed.digest))
    return changed
