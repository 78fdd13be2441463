"""The tables in one command, whole: its files, its runs, what it redoes, and what it survives."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from avvp_dist.annotations.llp import read_annotations
from avvp_dist.config import PackConfig, SimulateConfig, TablesConfig, TrackingConfig
from avvp_dist.config.command_line import parse
from avvp_dist.errors import ClusterError, ConfigError
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.evaluation.scores import LEVELS, STREAM_SCORES, score
from avvp_dist.packing.job import pack
from avvp_dist.packing.simulation import simulate
from avvp_dist.reproduction.paper_tables import PAPER
from avvp_dist.reproduction.rows import ROWS
from avvp_dist.reproduction.tables import reproduce_tables
from avvp_dist.shards.shard_set import ShardSet
from tests.reproduction.sweep import Sweep
from tests.warm_workers import WarmWorkers

NAMES = ["han", "ma", "pretrain_multi", "untrained"]
"""Every kind of row: plain, refined, over an encoder, and over one that is not trained."""
ENCODERS = ["multi", "untrained"]
TINY = [
    "seeds=1",
    "tracking.figures=false",
    "finetune=[trainer.epochs=1,trainer.batch_size=32,parser.width=16]",
    "pretrain=[trainer.epochs=1,trainer.batch_size=32,encoder.size=tiny]",
]


pytestmark = pytest.mark.launch


class Reproduction(Sweep):
    """`tools/reproduce_tables.py`, with a copy of the shards."""

    def __init__(
        self,
        folder: Path,
        packed: dict[str, ShardSet],
        features: Path,
        variables: dict[str, str],
    ):
        shards = folder / "shards"
        super().__init__(
            "tools/reproduce_tables.py", folder / "tables", shards, features, variables
        )
        for split, one in packed.items():
            # Without the grounding that another test may have left there.
            ignored = shutil.ignore_patterns("grounding", "records.jsonl", "mlflow.json")
            shutil.copytree(one.folder, shards / split, ignore=ignored)

    def markdown(self) -> dict[str, dict[str, list[str]]]:
        """The cells of every row, by level and method."""
        text = (self.out / "tables.md").read_text()
        tables: dict[str, dict[str, list[str]]] = {}
        for level, part in zip(LEVELS, text.split("**Table ")[1:], strict=True):
            rows = [row for row in part.splitlines() if row.startswith("| ")][1:]
            cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
            tables[level] = {method: found for method, *found in cells}
        return tables

    def csv(self) -> dict[tuple[str, str], dict[str, str]]:
        """The rows of tables.csv by method and `segment_audio` or alike."""
        rows = self.rows("tables.csv")
        found = {(row["method"], f"{row['level']}_{row['score']}"): row for row in rows}
        assert len(found) == len(rows)
        return found

    def scores(self, row: str) -> dict[str, float]:
        path = self.out / "rows" / f"{row}-seed1" / "scores" / "scores.json"
        found: dict[str, float] = json.loads(path.read_text())["scores"]
        return found

    def models(self) -> dict[str, int]:
        """When each trained thing was last written."""
        files = [*self.out.rglob("model.safetensors"), *self.out.rglob("labels.npz")]
        return {str(path.relative_to(self.out)): path.stat().st_mtime_ns for path in files}


def methods(*names: str) -> list[str]:
    """The lines that rows have in the tables."""
    lines = [ROWS[name].method for name in names]
    if "ma" in names:
        lines.insert(names.index("ma") + 1, "MA (Wu et al.), rule modality")
    return lines


@pytest.fixture(scope="module")
def made(
    packed: dict[str, ShardSet],
    features: Path,
    warm_workers: WarmWorkers,
    empty_store: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Reproduction:
    """The tables of all kinds of rows."""
    found = Reproduction(tmp_path_factory.mktemp("made"), packed, features, warm_workers.variables)
    shutil.copy(empty_store, found.database)
    found.run(*TINY, f"rows=[{','.join(NAMES)}]")
    return found


def test_both_tables_have_every_row(made: Reproduction) -> None:
    for level, rows in made.markdown().items():
        assert list(rows) == methods(*NAMES)
        for method, (seeds, *cells) in rows.items():
            assert seeds == "1" and len(cells) == 5
            paper = [cell.partition(" (")[2] for cell in cells]
            assert all(re.match(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", cell) for cell in cells)
            alone = [row.paper for row in ROWS.values() if row.method == method]
            (name,) = alone or ["MA"]
            known = PAPER[name] if name and method != "MA (Wu et al.)" else ()
            numbers = known[:5] if level == "segment" else known[5:]
            assert [text for text in paper if text] == [f"{number:.1f})" for number in numbers]


def test_both_titles_say_what_was_scored_and_how(made: Reproduction) -> None:
    text = (made.out / "tables.md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("**Table")]
    assert len(titles) == 2
    for title in titles:
        for words in (
            "Simulated features: no statement about LLP",
            "24 test clips",
            "audio annotations 2024",
            "rule video unless said",
            "threshold 0.5",
            "correct forms",
        ):
            assert words in title


def test_the_csv_holds_the_scores_of_every_row(made: Reproduction, features: Path) -> None:
    found = made.csv()
    keys = [f"{level}_{stream}" for level in LEVELS for stream in STREAM_SCORES]
    assert set(found) == {(method, key) for method in methods(*NAMES) for key in keys}
    assert {row["features"] for row in found.values()} == {
        "Simulated features: no statement about LLP"
    }
    assert {row["deviation"] for row in found.values()} == {""}
    expected = {ROWS[name].method: made.scores(name) for name in NAMES}
    predictions = made.out / "rows" / "ma-seed1" / "scores" / "predictions.npz"
    annotations = read_annotations(features, "test")
    assert annotations.events is not None
    ma = Predictions.load(predictions).ordered(annotations, predictions)
    expected["MA (Wu et al.), rule modality"] = score(
        ma.decided("modality", 0.5), annotations.events
    )
    for (method, key), row in found.items():
        assert row["mean"] == f"{expected[method][key]:.4f}"
        assert float(row["low_95"]) <= float(row["mean"]) <= float(row["high_95"])


def test_the_figures_are_there(made: Reproduction) -> None:
    for name in ("distribution.png", "classes.png"):
        assert (made.out / name).read_bytes().startswith(b"\x89PNG")


def logged(run: Any) -> dict[str, float]:
    """The metrics of a run but for the node's, which a job that takes its time has too."""
    metrics = run.data.metrics.items()
    return {name: value for name, value in metrics if not name.startswith("system/")}


def test_mlflow_has_one_run_for_each_job_under_that_of_the_tables(made: Reproduction) -> None:
    runs, found = made.runs(), made.csv()
    children = [f"{ROWS[name].method}, seed 1" for name in NAMES]
    children += [f"encoder {name}" for name in ENCODERS]
    assert set(runs) == {"tables", *children}
    parent = runs["tables"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for name in children:
        assert runs[name].data.tags["mlflow.parentRunId"] == parent.info.run_id
    for name in NAMES:
        assert logged(runs[f"{ROWS[name].method}, seed 1"]) == made.scores(name)
    for (method, key), row in found.items():
        metric = f"{re.sub('[^a-zA-Z0-9_ /-]', ' ', method)}/{key}"
        assert f"{parent.data.metrics[metric]:.4f}" == row["mean"]


def test_no_job_says_that_mlflow_is_away(made: Reproduction) -> None:
    logs = [path.read_text() for path in made.out.glob("*/*/log.txt")]
    assert len(logs) == len(NAMES) + len(ENCODERS)
    assert [line for log in logs for line in log.splitlines() if line.startswith("MLflow")] == []


def test_the_same_command_again_trains_nothing_and_needs_no_ray(made: Reproduction) -> None:
    models, text = made.models(), (made.out / "tables.md").read_text()
    assert len(models) == len(NAMES) + len(ENCODERS) + 2  # MA has a first parser, and labels
    (made.out / "tables.md").unlink()
    made.run(*TINY, f"rows=[{','.join(NAMES)}]", RAY_ADDRESS="127.0.0.1:1")
    assert made.models() == models
    assert (made.out / "tables.md").read_text() == text
    assert len(made.runs()) == 1 + len(NAMES) + len(ENCODERS)


def test_another_rule_scores_anew_and_trains_nothing(made: Reproduction) -> None:
    models = made.models()  # its tables are others afterwards
    made.run(*TINY, "rows=[ma]", "rule=modality")
    assert made.models() == models
    assert list(made.markdown()["segment"]) == ["MA (Wu et al.)"]
    parent = made.runs()["tables"].data.metrics
    child = logged(made.runs()["MA (Wu et al.), seed 1"])
    assert child == made.scores("ma")
    for (_, key), row in made.csv().items():
        assert row["mean"] == f"{child[key]:.4f}" == f"{parent[f'MA  Wu et al  /{key}']:.4f}"
        assert row["paper"]


def test_a_failing_row_is_a_gap_in_the_tables(made: Reproduction) -> None:
    models = made.models()  # the last test of `made`: its tables are others afterwards
    (made.out / "rows" / "base-seed1").write_text("not a folder")
    err = made.run(*TINY, "rows=[han,base]", code=ClusterError.exit_code)
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    assert "1 of 2 jobs failed, first Base, seed 1" in line and "FileExistsError" in line
    assert f"{made.out}/*/*/log.txt" in line
    for level, rows in made.markdown().items():
        numbers = PAPER["Base"][:5] if level == "segment" else PAPER["Base"][5:]
        assert rows["Base"] == ["0", *(f"- ({number:.1f})" for number in numbers)]
        assert rows["HAN"][0] == "1" and re.match(r"\d+\.\d \[", rows["HAN"][1])
    assert made.csv()["HAN", "segment_audio"]["mean"]
    assert made.csv()["Base", "segment_audio"]["mean"] == ""
    assert made.runs()["tables"].info.status == "FAILED"
    assert made.models() == models


def test_a_killed_command_goes_on_and_keeps_what_was_done(
    packed: dict[str, ShardSet],
    features: Path,
    warm_workers: WarmWorkers,
    empty_store: Path,
    tmp_path: Path,
) -> None:
    found = Reproduction(tmp_path, packed, features, warm_workers.variables)
    shutil.copy(empty_store, found.database)
    keys = ["seeds=1", "rows=[ma]", "finetune=[trainer.epochs=2,parser.width=16]"]
    keys.append("tracking.figures=false")
    process = found.start(*keys, python=warm_workers.variables["WARM_PYTHON"])
    family: list[psutil.Process] = []
    try:
        wait_for(lambda: len(done(found, "ma")) > 0, 120, process)
        family = psutil.Process(process.pid).children(recursive=True) + warm_workers.processes()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for one in family:  # like a machine that goes down: workers would live on for a while
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(family, timeout=60)
    assert 1 <= len(done(found, "ma")) < 4
    models = found.models()
    kept = [name for name in models if name.startswith("rows/ma-seed1/ma_contrastive/model")]
    assert kept

    found.run(*keys)
    assert len(done(found, "ma")) == 4
    assert {name: found.models()[name] for name in kept} == {name: models[name] for name in kept}
    assert all(cells[1] != "-" for cells in found.markdown()["segment"].values())
    assert set(found.runs()) == {"tables", "MA (Wu et al.), seed 1"}
    assert {run.info.status for run in found.runs().values()} == {"FINISHED"}


def done(found: Reproduction, row: str) -> list[str]:
    """The commands of a row that its ledger calls finished."""
    records = (found.out / "rows" / f"{row}-seed1" / "ledger").glob("*.json")
    return [path.stem for path in records if "made_from" in json.loads(path.read_text())]


def wait_for(condition: Any, seconds: float, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline, f"nothing after {seconds} s"
        time.sleep(0.02)


def test_a_wrong_row_is_refused_before_anything_is_made(
    packed: dict[str, ShardSet], features: Path, tmp_path: Path
) -> None:
    found = Reproduction(tmp_path, packed, features, {})
    config = parse(TablesConfig, "", [*found.keys, "rows=[han,hann]"])
    with pytest.raises(ConfigError, match="rows: there is no row hann, there are han, ma, "):
        reproduce_tables(config)
    assert not found.out.exists()


# LLP's own clips and labels, with simulated features.

FLOOR = 63.0
"""Segment Type@AV of the true weak labels on every snippet; predicting nothing has 8.4."""


@pytest.fixture
def llp(shared: Path, tmp_path: Path) -> Iterator[Path]:
    """Shard sets of LLP's val and test clips and the first 1,920 of train; csv files beside."""
    csvs, source, shards = (tmp_path / name for name in ("csvs", "features", "shards"))
    csvs.mkdir()
    for path in (shared / "llp").glob("AVVP_*.csv"):
        lines = path.read_text().splitlines(keepends=True)
        (csvs / path.name).write_text("".join(lines[: 1921 if path.stem == "AVVP_train" else None]))
    simulate(
        SimulateConfig(
            out=str(source), annotations=str(csvs), audio_dim=256, visual_dim=256, noise=0.2
        )
    )
    for split in ("train", "val", "test"):
        pack(
            PackConfig(
                source=str(source),
                annotations=str(csvs),
                split=split,
                out=str(shards / split),
                extractor="simulated",
                tracking=TrackingConfig(enabled=False),
            )
        )
    shutil.rmtree(source)
    yield tmp_path
    shutil.rmtree(shards)


@pytest.mark.shared
def test_a_row_learns_llps_labels_from_simulated_features(
    llp: Path, warm_workers: WarmWorkers
) -> None:
    found = Reproduction(llp, {}, llp / "csvs", warm_workers.variables)
    # Three times the paper's rate, for six epochs instead of its 40.
    schedule = "optimizer.lr=1e-3,optimizer.decay=0.5,optimizer.decay_every=3"
    found.run(
        "seeds=1",
        "rows=[base_adv_skip_gcaa]",
        f"finetune=[trainer.batch_size=32,trainer.epochs=6,parser.width=96,{schedule}]",
        "tracking.enabled=false",
        "tracking.figures=false",
    )
    method = ROWS["base_adv_skip_gcaa"].method
    assert float(found.csv()[method, "segment_type_av"]["mean"]) > FLOOR + 2
    text = (found.out / "tables.md").read_text()
    assert "1200 test clips, audio annotations 2024" in text
    faults = "{'empty_event': 6, 'duplicate_row': 8, 'overlapping_row': 14, 'unknown_clip': 25}"
    assert f"Faults in the annotation files, counted and handled: {faults}" in text
