"""What a user who gets it wrong sees: one line, and the documented exit code."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from avvp_dist.shards.shard_set import ShardSet

pytestmark = pytest.mark.launch


@pytest.mark.parametrize("fault", ["config", "missing shard", "unknown class"])
def test_two_ranks_end_with_one_line_and_the_exit_code(
    fault: str,
    packed: dict[str, ShardSet],
    features: Path,
    launch: Any,
    fork_ranks: Any,
    tmp_path: Path,
) -> None:
    script, keys, code, line = _wrong(fault, packed, features, tmp_path)
    start = launch if fault == "config" else fork_ranks  # one of them by the real launcher
    process = start(script, *keys, f"trainer.out={tmp_path / 'out'}")
    _, err = process.communicate(timeout=240)
    assert process.returncode == code
    assert [words for words in err.splitlines() if words.startswith("error")] == [line]


def _wrong(
    fault: str, packed: dict[str, ShardSet], features: Path, tmp_path: Path
) -> tuple[str, list[str], int, str]:
    if fault == "config":
        keys = [f"data.shards={packed['train'].folder}", "optimizer.lrr=1", "encoder.size=huge"]
        line = (
            "error: command line: unknown key optimizer.lrr, did you mean optimizer.lr?; "
            "encoder.size=huge is not one of tiny, small, base, paper, large, "
            "did you mean large? --help lists the keys"
        )
        return "launch/pretrain.py", keys, 2, line
    if fault == "missing shard":
        broken = tmp_path / "broken"
        shutil.copytree(packed["train"].folder, broken)
        (broken / "shard-000001.tar").unlink()
        line = (
            f"error: shard {broken}/shard-000001.tar is missing. "
            "Copy it again, or pack the shard set again"
        )
        return "launch/pretrain.py", [f"data.shards={broken}"], 3, line
    labels = tmp_path / "labels"
    shutil.copytree(features, labels)
    weak = labels / "AVVP_val_pd.csv"
    rows = weak.read_text().splitlines()
    rows[4] = rows[4].split("\t")[0] + "\tDogg"
    weak.write_text("\n".join(rows) + "\n")
    keys = [f"data.{split}={packed[split].folder}" for split in ("train", "val")]
    line = f"error: {weak}, line 5: class 'Dogg' is unknown. The nearest class is 'Dog'"
    return "launch/finetune.py", [*keys, f"data.annotations={labels}"], 3, line
