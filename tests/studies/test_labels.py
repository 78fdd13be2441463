"""The label study in one command: its table, its runs, what it redoes, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from avvp_dist.config import LabelsStudyConfig
from avvp_dist.errors import ConfigError
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.studies.labels import label_counts, study_labels
from tests.reproduction.sweep import Sweep
from tests.warm_workers import WarmWorkers

ARMS = ["no encoder", "random, frozen", "masked, 0.5*train, frozen"]
TINY = [
    "tracking.figures=false",
    "labels=[16,0]",
    "corpora=[0.5*train]",
    "objectives=[masked]",
    "encoders=[frozen]",
    "learning_rates=[1e-3,1e-2]",
    "seeds=2",
    "tuning_seeds=1",
    "pretrain=[trainer.max_steps=2,trainer.batch_size=16,encoder.size=tiny]",
    "finetune=[trainer.max_steps=2,trainer.batch_size=8,parser.width=16]",
]


class Study(Sweep):
    """`tools/study_labels.py`."""

    def made(self) -> dict[str, int]:
        """When each exported model was last written."""
        return {str(path): path.stat().st_mtime_ns for path in self.out.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def made(
    grounded: ShardSet,
    packed: dict[str, ShardSet],
    features: Path,
    warm_workers: WarmWorkers,
    empty_store: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Study:
    """A study of one objective and its controls, from two seeds, at two numbers of labels."""
    out = tmp_path_factory.mktemp("made") / "study"
    shards = packed["train"].folder.parent
    found = Study("tools/study_labels.py", out, shards, features, warm_workers.variables)
    shutil.copy(empty_store, found.database)
    found.run(*TINY)
    return found


@pytest.mark.launch
def test_every_arm_is_scored_at_every_number_of_labels(made: Study) -> None:
    rows = made.rows("study.csv")
    assert {(row["arm"], row["labels"], row["seed"]) for row in rows} == {
        (arm, labels, seed) for arm in ARMS for labels in ("16", "96") for seed in ("1", "2")
    }
    text = (made.out / "study.md").read_text()
    for words in ("Simulated features", "2 seeds, ", "AUC within clips", "raw features"):
        assert words in text
    assert "What is shown" in text
    assert (made.out / "labels.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.launch
def test_one_seed_tries_every_rate_and_the_others_the_chosen_one(made: Study) -> None:
    chosen = {(row["arm"], row["labels"]): row["lr"] for row in made.rows("study.csv")}
    tried = [path.name for path in (made.out / "parsers").iterdir()]
    assert len(tried) == len(chosen) * (2 + 1)
    for (arm, labels), rate in chosen.items():
        name = f"{arm} {labels} labels lr {float(rate):g} seed 2".replace(", ", "-").replace(
            " ", "-"
        )
        assert name.replace("*", "-") in tried


@pytest.mark.launch
def test_its_runs_are_the_points_of_the_table(made: Study) -> None:
    runs, rows = made.runs(), made.rows("study.csv")
    assert set(runs) == {"study", *(f"{row['arm']}, {row['labels']} labels" for row in rows)}
    for row in rows:
        run = runs[f"{row['arm']}, {row['labels']} labels"].data
        assert run.tags["mlflow.parentRunId"] == runs["study"].info.run_id
        same = [r for r in rows if (r["arm"], r["labels"]) == (row["arm"], row["labels"])]
        mean = sum(float(r["test/segment_type_av"]) for r in same) / len(same)
        assert run.metrics["test/segment_type_av"] == pytest.approx(mean, abs=1e-3)


@pytest.mark.launch
def test_what_is_missing_is_made_again_and_nothing_else(made: Study) -> None:
    before = made.made()
    (gone, *_) = (made.out / "parsers").glob("no-encoder*seed-2")
    shutil.rmtree(gone)
    made.run(*TINY)
    after = made.made()
    changed = {path for path in after if after[path] != before.get(path)}
    assert changed and all(Path(path).is_relative_to(gone) for path in changed)
    assert set(after) == set(before)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"seeds": 1}, "one training tells no difference from chance"),
        ({"seeds": 2, "tuning_seeds": 3}, "tuning_seeds=3 are more than seeds=2"),
        ({"objectives": []}, "objectives is empty"),
        ({"objectives": ["duo"]}, "has the part duo"),
        ({"labels": [1000]}, "has 96 clips to train on"),
        ({"finetune": ["parser.size=3"]}, "parser.size"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_is_made(
    grounded: ShardSet,
    packed: dict[str, ShardSet],
    features: Path,
    tmp_path: Path,
    keys: dict[str, object],
    fault: str,
) -> None:
    config = LabelsStudyConfig(
        shards=str(packed["train"].folder.parent),
        annotations=str(features),
        out=str(tmp_path / "out"),
        labels=[16],
    )
    for key, value in keys.items():
        setattr(config, key, value)
    config.tracking.enabled = False
    with pytest.raises(ConfigError, match=fault):
        study_labels(config)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_zero_labels_are_all_clips_that_are_trained_on(packed: dict[str, ShardSet]) -> None:
    config = LabelsStudyConfig(labels=[0, 16, 96])
    assert label_counts(config, packed["train"]) == [16, 96]
