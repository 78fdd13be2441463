"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from avvp_dist.config import EncoderConfig, ObjectiveConfig, TrainerConfig
from avvp_dist.errors import DataError, NumericsError, StorageError
from avvp_dist.models.export import build_encoder, load_encoder
from avvp_dist.models.specification import EncoderSpec
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.training.checkpoint import TrainerState, newest
from avvp_dist.training.saving import CheckpointSaver, SaveTimes, host_copy
from tests.training.test_checkpoint import ALONE, Engine, save, steps

SPEC = EncoderSpec(
    encoder=EncoderConfig(size="tiny"),
    objective=ObjectiveConfig(),
    dims={"audio": 12, "visual": 16},
    snippets=10,
    extractor="simulated",
    manifest="none",
    grounding="none",
)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that takes the weights only once this is set."""
    ready, write = threading.Event(), torch.save

    def held(*arguments: Any) -> None:
        ready.wait(30)
        write(*arguments)

    monkeypatch.setattr(torch, "save", held)
    yield ready
    ready.set()


def saver_of(
    out: Path, ranks: Ranks = ALONE, said: Callable[[str], None] = lambda doing: None
) -> tuple[CheckpointSaver, list[SaveTimes]]:
    times: list[SaveTimes] = []
    return CheckpointSaver(out, TrainerConfig(out=str(out)), ranks, said, times.append), times


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("checkpoint")]


def weights_at(out: Path, step: int) -> torch.Tensor:
    path = out / f"checkpoints/step-{step:08d}/state/states.pt"
    weights: torch.Tensor = torch.load(path, weights_only=True)["weights"]
    return weights


def test_training_goes_on_while_the_disk_does_not(tmp_path: Path, disk: threading.Event) -> None:
    engine, said = Engine(), list[str]()
    saver, times = saver_of(tmp_path, said=said.append)
    with saver:
        saver.start(engine, TrainerState(2))
        assert saver.pending and saver.writing and not times
        engine.weights += 1  # a step of the training
        engine.module(torch.randn(4, 2))
        assert steps(tmp_path) == []
        threading.Timer(0.2, disk.set).start()
        saver.start(engine, TrainerState(4))  # waits for the one before
        assert steps(tmp_path) == [2] and [one.step for one in times] == [2]
    assert steps(tmp_path) == [2, 4] and not saver.pending
    assert said == [
        *("copying its state", "writing a checkpoint", "committing a checkpoint"),
        *("copying its state", "writing a checkpoint", "committing a checkpoint"),
    ]
    assert times[0].total >= times[0].blocked > 0.1
    # Each holds the state of its own step.
    assert [int(weights_at(tmp_path, step)[0]) for step in (2, 4)] == [0, 1]
    found = newest(tmp_path, ALONE)
    assert found is not None and found.step == 4 and found.state == TrainerState(4)
    assert not threads()


@pytest.mark.parametrize(
    ("error", "size", "kept"),
    [
        (NumericsError("diverged", shared=True), 1, [2]),
        (DataError("this rank's", shared=False), 1, [2]),
        (DataError("this rank's", shared=False), 2, []),
        (KeyboardInterrupt(), 1, []),
    ],
)
def test_an_error_commits_where_all_ranks_have_it(
    tmp_path: Path,
    disk: threading.Event,
    error: BaseException,
    size: int,
    kept: list[int],
) -> None:
    saver, _ = saver_of(tmp_path)
    threading.Timer(0.1, disk.set).start()
    with pytest.raises(type(error)), saver:
        saver.start(Engine(), TrainerState(2))
        saver.ranks = Ranks(0, size, torch.device("cpu"))  # a peer that must be asked for nothing
        raise error
    assert steps(tmp_path) == kept and not threads()
    assert len(list((tmp_path / "checkpoints").iterdir())) == len(kept)


def test_a_save_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 2)
    torn = tmp_path / "checkpoints" / ".step-00000004.tmp"
    torn.mkdir()
    found = newest(tmp_path, ALONE)
    assert found is not None and found.step == 2
    save(tmp_path, 6)
    assert not torn.exists()


def test_a_full_disk_leaves_the_one_before(small_disk: Any) -> None:
    folder = small_disk("200k")
    save(folder, 2)
    saver, times = saver_of(folder)
    full = r"step-00000004 cannot be written: no space left"
    with pytest.raises(StorageError, match=full) as e, saver:
        saver.start(Engine(size=2000), TrainerState(4))
    assert "trainer.resume=auto" in str(e.value) and e.value.shared
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    found = newest(folder, ALONE)
    assert found is not None and found.step == 2
    assert not times and not threads()


def test_an_export_is_written_before_the_checkpoint_that_knows_of_it(
    tmp_path: Path, disk: threading.Event
) -> None:
    encoder, saver = build_encoder(SPEC), saver_of(tmp_path)[0]
    with saver:
        saver.export(tmp_path / "model", encoder.state_dict(), SPEC)
        before = encoder.norm.weight[0].item()
        torch.nn.init.zeros_(encoder.norm.weight)
        saver.start(Engine(), TrainerState(2))
        disk.set()
    exported, spec = load_encoder(tmp_path / "model")
    assert exported.norm.weight[0].item() == before == 1 and spec == SPEC
    assert steps(tmp_path) == [2] and not threads()


def test_where_an_export_does_not_fit_no_checkpoint_counts(small_disk: Any) -> None:
    folder = small_disk("200k")
    full = "step-00000002 cannot be written: no space left"
    with pytest.raises(StorageError, match=full), saver_of(folder)[0] as saver:
        saver.export(folder / "model", build_encoder(SPEC).state_dict(), SPEC)
        saver.start(Engine(), TrainerState(2))
    assert steps(folder) == [] and not list(folder.glob("*model*")) and not threads()


def test_a_copy_is_of_its_own_and_keeps_types() -> None:
    weight = torch.zeros(2)
    state = OrderedDict(weight=weight, shapes=[{"w": torch.Size([2])}], groups=[(1, weight)])
    state._metadata = {"version": 2}  # type: ignore[attr-defined]  # as torch does
    copied: Any = host_copy(state)
    weight += 1
    assert copied["weight"].tolist() == copied["groups"][0][1].tolist() == [0, 0]
    assert type(copied["shapes"][0]["w"]) is torch.Size and type(copied) is OrderedDict
    assert copied._metadata == {"version": 2}
