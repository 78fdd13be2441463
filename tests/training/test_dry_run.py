"""`--dry-run`: it says what a real run then does, refuses what that refuses, and writes nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avvp_dist.config import EncoderConfig, TrainerConfig
from avvp_dist.models.encoder import Encoder
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.training.dry_run import gpu_rows
from avvp_dist.training.footprint import Weights, checkpoint_bytes

KEYS = ("encoder.size=tiny", "data.heldout=0.1", "trainer.batch_size=16", "trainer.max_steps=4")


Dry = Callable[..., tuple[int, dict[str, str], str]]


@pytest.fixture
def dry(fork_ranks: Any) -> Dry:
    """Exit code, rows of the table, and stderr of an entry point that may not load DeepSpeed."""

    def run(script: str, *words: str, **variables: str) -> tuple[int, dict[str, str], str]:
        entry = ("tests/training/without_deepspeed.py", f"launch/{script}.py", "--dry-run")
        process = fork_ranks(*entry, *words, ranks=1, **variables)
        out, err = process.communicate(timeout=120)
        rows = (re.split(r"  +", line, maxsplit=1) for line in out.splitlines())
        said = [line for line in err.splitlines() if "names hold a video id" not in line]
        return process.returncode, {row[0]: row[-1] for row in rows}, "\n".join(said)

    return run


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def pretrained(grounded: ShardSet, fork_ranks: Any, tmp_path_factory: Any) -> Path:
    """A real run of one rank, and what it was told before."""
    out: Path = tmp_path_factory.mktemp("run")
    keys = (f"data.shards={grounded.folder}", f"trainer.out={out}", "tracking.enabled=false")
    process = fork_ranks("launch/pretrain.py", *keys, *KEYS, ranks=1)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


@pytest.mark.launch
def test_the_plan_is_what_a_run_does_and_nothing_is_written(
    dry: Dry, pretrained: Path, grounded: ShardSet, tmp_path: Path
) -> None:
    shards = f"data.shards={grounded.folder}"
    before = contents(grounded.folder)
    code, rows, err = dry("pretrain", shards, f"trainer.out={tmp_path / 'new'}", *KEYS)
    assert (code, err) == (0, "")
    assert not (tmp_path / "new").exists() and contents(grounded.folder) == before
    encoder = Encoder(EncoderConfig(size="tiny"), grounded.dims, grounded.snippets)
    weights = Weights.of(encoder)
    assert rows["parameters"] == f"{weights.trained:,} trained, 0 frozen"
    checkpoint = next((pretrained / "checkpoints").glob("step-00000004"))
    stored = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert checkpoint_bytes(weights, TrainerConfig()) == pytest.approx(stored, rel=0.02)
    assert rows["steps"].startswith("5 an epoch, 4 in all")
    assert rows["micro-batch"] == "audio [16, 10, 12], visual [16, 10, 16]"

    before = contents(pretrained)
    kept = [shards, f"trainer.out={pretrained}", *KEYS]
    code, rows, _ = dry("pretrain", *kept, "trainer.resume=auto", WORLD_SIZE="2")
    assert (code, rows["pretraining"]) == (0, "2 ranks, ZeRO 0, fp32")
    assert rows["start"] == "from step-00000004"
    zero = ["trainer.resume=auto", "trainer.zero_stage=3", "--ranks", "2"]
    code, rows, _ = dry("pretrain", *kept, *zero)
    assert rows["start"].endswith("1 ranks, ZeRO 0, fp32 turn into 2 ranks, ZeRO 3, fp32")
    code, _, err = dry("pretrain", *kept, "trainer.resume=auto", "trainer.seed=7")
    assert code == 4 and "trainer.seed: 1 then, 7 now" in err
    code, _, err = dry("pretrain", *kept)
    assert code == 4 and "already holds a run" in err
    assert contents(pretrained) == before


@pytest.mark.launch
def test_a_damaged_checkpoint_is_named_and_left_where_it_is(
    dry: Dry, pretrained: Path, grounded: ShardSet, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(pretrained, out)
    file = next(out.glob("checkpoints/step-00000004/state/*"))
    file.write_bytes(file.read_bytes()[:-1])
    before = contents(out)
    keys = [f"data.shards={grounded.folder}", f"trainer.out={out}", *KEYS, "trainer.resume=auto"]
    code, _, err = dry("pretrain", *keys)
    assert code == 4 and "step-00000004 is damaged" in err and "no checkpoint in" in err
    assert contents(out) == before


def test_a_plan_for_64_ranks(dry: Dry, grounded: ShardSet, tmp_path: Path) -> None:
    keys = [f"data.shards={grounded.folder}", f"trainer.out={tmp_path}", *KEYS]
    keys += ["trainer.export=best", "trainer.patience=2"]
    code, rows, err = dry(
        "pretrain", *keys, "--ranks", "64", "trainer.batch_size=64", "trainer.zero_stage=1"
    )
    assert (code, err) == (0, "")
    assert ", fewer after 2 validations without a better score" in rows["steps"]
    assert rows["batch"] == "64 clips = 64 ranks x 1 micro-batches x 1"
    assert rows["if ranks are GPUs"] == (
        "1 clips at once leave them idle: set trainer.batch_size=8192 or more "
        "(see --config pretrain/gpu), or take fewer ranks"
    )
    assert rows["negatives"].startswith("10 anchors x 640 snippets = 6,400 cells")
    code, _, err = dry("pretrain", *keys, "--ranks=3")
    assert code == 2 and "trainer.batch_size=16 is not a multiple of 3 ranks" in err
    assert dry("pretrain", *keys, RANK="1", WORLD_SIZE="2") == (0, {}, "")


@pytest.mark.parametrize(
    ("batch", "accumulation", "ranks", "hint"),
    [
        (128, 1, 1, ""),
        (2048, 2, 8, ""),
        (64, 1, 1, "64 clips at once leave them idle: set trainer.batch_size=128 or more"),
        (2400, 30, 2, "40 clips at once leave them idle: set trainer.gradient_accumulation=8,"),
    ],
)
def test_gpus_get_batches_that_keep_them_busy(
    batch: int, accumulation: int, ranks: int, hint: str
) -> None:
    trainer = TrainerConfig(batch_size=batch, gradient_accumulation=accumulation)
    rows = dict(gpu_rows(trainer, ranks, batch // (ranks * accumulation)))
    assert rows.get("if ranks are GPUs", "").startswith(hint) and bool(rows) == bool(hint)


def test_what_a_run_refuses_is_refused(dry: Dry, grounded: ShardSet, tmp_path: Path) -> None:
    broken, extra = tmp_path / "broken", tmp_path / "extra.json"
    shutil.copytree(grounded.folder, broken)
    extra.write_text('{"zero_optimisation": {}}')
    keys = [f"data.shards={broken}", f"trainer.out={tmp_path / 'out'}", *KEYS]
    code, _, err = dry("pretrain", *keys, f"trainer.deepspeed={extra}")
    assert code == 2 and "did you mean zero_optimization?" in err
    (broken / "shard-000001.tar").unlink()
    code, _, err = dry("pretrain", *keys)
    assert code == 3 and "shard-000001.tar is missing" in err


def test_fine_tuning_over_an_encoder(
    dry: Dry, packed: dict[str, ShardSet], features: Path, pretrained: Path, tmp_path: Path
) -> None:
    keys = [f"data.{split}={packed[split].folder}" for split in ("train", "val")]
    keys += [f"data.annotations={features}", f"trainer.out={tmp_path}", "parser.width=32"]
    keys += [f"pretrained.checkpoint={pretrained / 'model'}"]
    code, rows, err = dry("finetune", *keys)
    assert (code, err) == (0, "")
    train = packed["train"]
    encoder = Encoder(EncoderConfig(size="tiny"), train.dims, train.snippets)
    assert rows["parameters"].endswith(f"{Weights.of(encoder).trained:,} frozen")
    assert not list(tmp_path.iterdir())
    code, _, err = dry("finetune", *keys, f"pretrained.checkpoint={tmp_path / 'none'}")
    assert code == 4 and "none does not exist" in err
    code, _, err = dry("finetune", *keys, f"data.annotations={tmp_path}")
    assert code == 3
