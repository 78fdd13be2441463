"""The sequence of every training: folder, data, ranks, task; nothing is left of one that fails."""

from __future__ import annotations

import gc
import subprocess
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from avvp_dist.config import FinetuneConfig, PretrainConfig
from avvp_dist.errors import CheckpointError, ClusterError, ConfigError, DataError
from avvp_dist.runtime.lock import claim
from avvp_dist.runtime.ranks import Ranks, connect
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tasks.finetuning import finetune, open_finetuning
from avvp_dist.tasks.pretraining import PretrainingTask, open_pretraining
from avvp_dist.tracking.records import RegisterRecord, read_records, read_series
from avvp_dist.training import trainer
from avvp_dist.training.engine import make_engine
from avvp_dist.training.runner import deterministic, run_training


def config_of(out: Path, shards: ShardSet | None = None) -> PretrainConfig:
    config = PretrainConfig()
    config.trainer.out, config.trainer.seed, config.trainer.max_steps = str(out), 31, 1
    config.encoder.size, config.tracking.enabled = "tiny", False
    config.data.shards = [str(shards.folder)] if shards else []
    return config


def never(
    config: PretrainConfig, connect: Callable[[], Ranks], *, scratch: Path | None = None
) -> PretrainingTask:
    raise AssertionError("the task is opened")


def test_data_is_opened_under_the_lock_and_before_the_ranks_connect(
    grounded: ShardSet, one_rank: None, tmp_path: Path
) -> None:
    out, order = tmp_path / "run", []

    def opened(
        config: PretrainConfig, connect: Callable[[], Ranks], *, scratch: Path | None = None
    ) -> PretrainingTask:
        order.append(((out / "lock.json").is_file(), torch.distributed.is_initialized()))

        def connected() -> Ranks:
            ranks = connect()
            order.append((ranks.size, torch.initial_seed()))
            return ranks

        return open_pretraining(config, connected)

    run_training("pretrain", config_of(out, grounded), opened)
    assert order[0][0] and order[1] == (1, 31)
    assert not (out / "lock.json").exists()
    (record,) = (r for r, _ in read_records(out) if isinstance(r, RegisterRecord))
    assert (record.model, record.tags["clips_seen"]) == ("avvp-encoder", "64")


def test_a_refusal_leaves_nothing_behind(tmp_path: Path) -> None:
    def refused(
        config: PretrainConfig, connect: Callable[[], Ranks], *, scratch: Path | None = None
    ) -> PretrainingTask:
        raise DataError("shard 3 is missing")

    with pytest.raises(DataError, match="shard 3"):
        run_training("pretrain", config_of(tmp_path / "run"), refused)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_of_another_run_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="already holds a run"):
        run_training("pretrain", config_of(tmp_path), never)
    with claim(tmp_path / "held"), pytest.raises(ClusterError, match="belongs to a running job"):
        run_training("pretrain", config_of(tmp_path / "held"), never)


NOT_DETERMINISTIC = {
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "max_unpool2d"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "grid_sampler_2d_backward"),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "_embedding_bag", "_ctc_loss"),
    *("nll_loss2d_forward", "put_", "histc", "bincount", "median", "kthvalue", "cumprod"),
}
"""Operations without a deterministic algorithm for CUDA, by torch's documentation."""


class Operations(TorchDispatchMode):
    """Names of the operations of a training, its backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name == "cumsum" and args[0].is_floating_point():
            name = "cumsum of floats"
        self.names.add(name)
        return func(*args, **(kwargs or {}))


def test_a_deterministic_pretraining_repeats_itself_bit_for_bit(
    grounded: ShardSet, one_rank: None, tmp_path: Path
) -> None:
    weights = []
    for name in ("first", "second"):
        config = config_of(tmp_path / name, grounded)
        config.trainer.deterministic, config.tracking.figures = True, False
        with Operations() as operations:
            run_training("pretrain", config, open_pretraining)
        weights.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert not torch.are_deterministic_algorithms_enabled()
    assert {"bmm", "_fused_adamw_"} <= operations.names
    assert not operations.names & (NOT_DETERMINISTIC | {"cumsum of floats"})


def finetuning(packed: dict[str, ShardSet], features: Path, out: Path) -> FinetuneConfig:
    """Three steps with dropout, each of them validated."""
    config = FinetuneConfig()
    config.data.train, config.data.val = (str(packed[s].folder) for s in ("train", "val"))
    config.data.annotations, config.trainer.out = str(features), str(out)
    config.parser.width, config.optimizer.schedule = 32, "constant"
    config.trainer.epochs, config.trainer.max_steps, config.trainer.batch_size = 0, 3, 48
    config.trainer.validate_every = config.trainer.log_every = 1
    config.tracking.enabled = config.tracking.figures = False
    return config


def learned(out: Path) -> tuple[bytes, dict[str, dict[int, float]]]:
    """The exported weights, and the metrics that do not measure time."""
    timed = ("second", "seconds", "rank", "mfu", "wait")
    series = {n: v for n, v in read_series(out).items() if not n.endswith(timed)}
    return (out / "model" / "model.safetensors").read_bytes(), series


@pytest.mark.launch
def test_trainings_in_one_process_equal_a_launched_one_bit_for_bit(
    packed: dict[str, ShardSet], features: Path, one_rank: None, fork_ranks: Any, tmp_path: Path
) -> None:
    connect()  # a process chooses its number of threads when it first trains
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in ("first", "second"):
            finetune(finetuning(packed, features, tmp_path / name))
    finally:
        torch.set_num_threads(threads)
    config = ("--config", str(tmp_path / "first" / "config.yaml"))
    process = fork_ranks(
        "launch/finetune.py", *config, f"trainer.out={tmp_path / 'launched'}", ranks=1
    )
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    first, second, launched = (learned(tmp_path / n) for n in ("first", "second", "launched"))
    assert {"train/loss", "train/grad_norm", "val/segment_type_av"} <= first[1].keys()
    assert first == second == launched


@pytest.mark.parametrize("stage", [0, 1])
def test_a_training_leaves_nothing_in_its_process(
    packed: dict[str, ShardSet],
    features: Path,
    one_rank: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
) -> None:
    made, left = list[weakref.ref[object]](), list[tuple[int, int, int]]()

    def noted(module: nn.Module, *others: Any) -> Any:
        engine = make_engine(module, *others)
        made.extend(map(weakref.ref, (engine, module, *module.parameters())))
        return engine

    def refused(*words: Any, **keys: Any) -> None:
        raise AssertionError(f"{words} is started")

    monkeypatch.setattr(trainer, "make_engine", noted)
    monkeypatch.setattr(subprocess.Popen, "__init__", refused)
    gc.collect()
    gc.disable()
    try:
        for number in range(5 if stage == 0 else 2):
            config = finetuning(packed, features, tmp_path / str(number))
            config.trainer.zero_stage, config.trainer.precision = stage, "tf32"
            finetune(config)
            if stage:
                gc.collect()
            assert made and not any(one() is not None for one in made)
            tensors = sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())
            files = len(list(Path("/proc/self/fd").iterdir()))
            left.append((tensors, files, threading.active_count()))
    finally:
        gc.enable()
    assert left[1:] == left[1:2] * (len(left) - 1)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_deterministic_finetuning_has_all_its_operations(
    packed: dict[str, ShardSet], features: Path, one_rank: None, tmp_path: Path
) -> None:
    config = FinetuneConfig()
    config.data.train, config.data.val = (str(packed[s].folder) for s in ("train", "val"))
    config.data.annotations, config.trainer.out = str(features), str(tmp_path)
    config.parser.width, config.tracking.enabled = 32, False
    config.trainer.deterministic, config.trainer.max_steps = True, 1
    config.tracking.figures = False
    with Operations() as operations:
        run_training("finetune", config, open_finetuning)
    assert load_file(tmp_path / "model" / "model.safetensors")
    assert {"binary_cross_entropy_backward", "_fused_adamw_"} <= operations.names
    assert not operations.names & (NOT_DETERMINISTIC | {"cumsum of floats"})


def test_what_cannot_be_deterministic_is_an_error_of_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(ConfigError) as caught, deterministic(True):
        torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))
    assert str(caught.value) == (
        "trainer.deterministic: put_ does not have a deterministic implementation. "
        "Set trainer.deterministic=false"
    )
    with pytest.raises(RuntimeError, match="of another kind"), deterministic(True):
        raise RuntimeError("of another kind")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ConfigError, match="CUBLAS_WORKSPACE_CONFIG=:0:0"), deterministic(True):
        raise AssertionError("the training began")
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
