"""The study in one command, whole: its rows, its runs, what it redoes, and what it refuses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from avvp_dist.config import StudyConfig
from avvp_dist.config.command_line import parse
from avvp_dist.errors import ClusterError, ConfigError
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.studies.grounding import study, study_points
from tests.reproduction.sweep import Sweep
from tests.warm_workers import WarmWorkers

POINT = "or 0.05 components multi"
CONTROLS = [
    "everything in a clip is one component multi",
    "every snippet is its own multi",
    "untrained encoder",
    "no encoder",
]
TINY = [
    "tracking.figures=false",
    "rules=[or]",
    "false_link_rates=[0.05]",
    "groupings=[components]",
    "pretrain=[trainer.epochs=1,trainer.max_steps=2,trainer.batch_size=32,encoder.size=tiny]",
    "finetune=[trainer.epochs=1,trainer.max_steps=2,trainer.batch_size=32,parser.width=16]",
]


class Study(Sweep):
    """`tools/study_grounding.py`."""

    def __init__(
        self,
        folder: Path,
        packed: dict[str, ShardSet],
        features: Path,
        variables: dict[str, str],
    ):
        shards = packed["train"].folder.parent
        super().__init__("tools/study_grounding.py", folder / "study", shards, features, variables)

    def markdown(self) -> dict[str, list[str]]:
        """The cells of every row, by point."""
        text = (self.out / "study.md").read_text()
        rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")][1:]
        return {name.strip(): [cell.strip() for cell in cells] for name, *cells in rows}

    def made(self) -> dict[str, int]:
        """When each label and each model was last written."""
        files = [*self.out.rglob("*.npy"), *self.out.rglob("*.safetensors")]
        return {str(path): path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def made(
    packed: dict[str, ShardSet],
    features: Path,
    warm_workers: WarmWorkers,
    empty_store: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Study:
    """A study of one point and its controls, from two seeds."""
    found = Study(tmp_path_factory.mktemp("made"), packed, features, warm_workers.variables)
    shutil.copy(empty_store, found.database)
    train = packed["train"].folder
    before = sorted(train.rglob("*"))
    found.run(*TINY)
    assert sorted(train.rglob("*")) == before
    return found


@pytest.mark.launch
def test_the_table_has_the_point_and_then_every_control(made: Study) -> None:
    rows = made.markdown()
    assert next(iter(rows)) == POINT
    assert set(rows) == {POINT, *(f"control: {name}" for name in CONTROLS)}
    for seeds, *cells in rows.values():
        assert seeds == "2" and len(cells) == 11 and all(" ± " in cell for cell in cells[4:])
    assert rows[f"control: {CONTROLS[0]}"][1:4] == ["1.00", "100.0%", "100.0%"]
    assert rows[f"control: {CONTROLS[1]}"][1:4] == ["10.00", "0.0%", "0.0%"]
    assert rows[f"control: {CONTROLS[3]}"][1:5] == ["-"] * 4
    assert "-" not in rows[POINT]
    text = (made.out / "study.md").read_text()
    for words in ("Simulated features", "96 train, 24 val, 24 test clips", "2 seeds", "Choose"):
        assert words in text
    assert (made.out / "study.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.launch
def test_the_runs_say_what_the_csv_says(made: Study) -> None:
    runs, rows = made.runs(), made.rows("study.csv")
    names = {f"{row['point']}, seed {row['seed']}" for row in rows}
    assert names == {f"{name}, seed {seed}" for name in (POINT, *CONTROLS) for seed in (1, 2)}
    groundings = {f"grounding {name}" for name in ("or-0.05-components", "clip", "snippet")}
    assert set(runs) == {"study", "rate 0.05", *groundings, *names}
    for row in rows:
        run = runs[f"{row['point']}, seed {row['seed']}"].data
        assert run.tags["mlflow.parentRunId"] == runs["study"].info.run_id
        for tag in ("rule", "rate", "grouping", "objective", "seed"):
            assert run.tags.get(tag, "") == row[tag]
        for key in ("components_per_clip", "val/segment_type_av", "test/event_type_av"):
            assert (f"{run.metrics[key]:.4f}" if key in run.metrics else "") == row[key]
    own = [run.data for name, run in runs.items() if name.startswith(POINT)]
    assert {run.tags["rule"] + run.tags["rate"] for run in own} == {"or0.05"}
    assert all("positive_pair_share" in run.metrics for run in own)


@pytest.mark.launch
def test_the_same_command_again_makes_nothing_and_needs_no_ray(made: Study) -> None:
    before, runs = made.made(), set(made.runs())
    text = (made.out / "study.md").read_text()
    (made.out / "study.md").unlink()
    made.run(*TINY, RAY_ADDRESS="127.0.0.1:1")
    assert made.made() == before and set(made.runs()) == runs
    assert (made.out / "study.md").read_text() == text


@pytest.mark.launch
def test_a_rate_that_fails_is_a_gap(made: Study) -> None:
    before = made.made()  # the last test of `made`: its table is another one afterwards
    blocked = made.out / "groundings" / "rate-0.01"
    blocked.write_text("not a folder")
    err = made.run(*TINY, "false_link_rates=[0.01,0.05]", code=ClusterError.exit_code)
    # The rate, its grounding, and two seeds that would have stood on it.
    assert "error: 4 of 18 jobs failed, first rate 0.01: " in err and "FileExistsError" in err
    rows = made.markdown()
    assert rows["or 0.01 components multi"] == ["0", *["-"] * 11]
    assert list(rows)[:2] == [POINT, "or 0.01 components multi"]
    assert made.made() == before


def test_every_combination_is_a_point() -> None:
    config = StudyConfig(rules=["or", "and"], false_link_rates=[0.01, 0.1], objectives=["uni"])
    grid = [row for row in study_points(config) if not row.control]
    assert len(grid) == len({(row.rule, row.rate, row.grouping) for row in grid}) == 8
    assert [row.name for row in study_points(config)][-2:] == CONTROLS[-2:]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("seeds=1", "seeds=1: one training tells no difference from chance"),
        ("rules=[]", "rules is empty"),
        ("rules=[xor]", "rules=xor is not one of or, and"),
        ("groupings=[clip]", "groupings=clip is not one of components, mutual-knn, average-link"),
        ("objectives=[multi,duo]", "objectives=duo is not one of uni, cross, multi"),
        ("false_link_rates=[2]", "false_link_rates=2.0 is above 1"),
        ("pretrain=[encoder.sise=tiny]", "unknown key encoder.sise"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_anything_is_made(
    key: str,
    words: str,
    packed: dict[str, ShardSet],
    features: Path,
    tmp_path: Path,
) -> None:
    found = Study(tmp_path, packed, features, {})
    with pytest.raises(ConfigError, match=re.escape(words)):
        study(parse(StudyConfig, "", [*found.keys, key]))
    assert not found.out.exists()
