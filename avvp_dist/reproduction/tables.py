"""Tables 1 and 2 in one command: every row from several seeds, and two figures."""

from __future__ import annotations

import re
from pathlib import Path

from avvp_dist.annotations.llp import Annotations, read_annotations
from avvp_dist.commit import staged
from avvp_dist.config import TablesConfig
from avvp_dist.evaluation.parsing_figures import (
    comparison_figure,
    distribution_figure,
    event_counts,
)
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.evaluation.scores import THRESHOLD, Mask, mean_per_class, summarise
from avvp_dist.reproduction.jobs import Job, raise_if_failed, run_jobs
from avvp_dist.reproduction.paper_tables import TableRow, markdown, write_table
from avvp_dist.reproduction.recipes import described_features, open_splits, parent_run
from avvp_dist.reproduction.rows import ROWS, Row, chosen_rows, encoder_jobs, row_jobs
from avvp_dist.tracking.run import Run

Jobs = dict[tuple[str, int], Job]


def reproduce_tables(config: TablesConfig) -> Path:
    """Make what is missing, write `tables.md`, `tables.csv` and two figures into `config.out`.

    Raises:
        ConfigError: for an unknown row.
        ClusterError: if trainings failed, after all others are done and the tables are written.
    """
    rows, out = chosen_rows(config), Path(config.out).absolute()
    shards = open_splits(config)
    annotations = read_annotations(
        config.annotations,
        "test",
        audio_version=config.audio_annotations,
        snippets=shards["test"].snippets,
    )
    with parent_run("tables", out, config, shards) as run:
        encoders = encoder_jobs(config, out, rows)
        jobs = row_jobs(config, out, rows, shards, encoders)
        failed = run_jobs([*encoders.values(), *jobs.values()], config.cpus, config.gpus)
        features = described_features(shards["test"])
        _write(run, config, out, _rows(config, rows, jobs, annotations), features, annotations)
        _draw(run, config, out, jobs, features, annotations)
        raise_if_failed(failed, len(encoders) + len(jobs), out)
    return out


def _decided(jobs: Jobs, row: str, annotations: Annotations, rule: str) -> list[Mask]:
    """Predicted events of the finished parsers of a row, one mask per seed."""
    masks = []
    for (name, _), job in jobs.items():
        if name == row and job.is_finished:
            path = job.commands[-1].out / "predictions.npz"
            predictions = Predictions.load(path).ordered(annotations, path)
            masks.append(predictions.decided(rule, THRESHOLD))
    return masks


def _rows(
    config: TablesConfig, rows: dict[str, Row], jobs: Jobs, annotations: Annotations
) -> list[TableRow]:
    """The rows with their scores, twice for a row whose published numbers have another rule."""
    assert annotations.events is not None
    made = []
    for name, row in rows.items():
        for rule in dict.fromkeys((config.rule, row.rule)):
            masks = _decided(jobs, name, annotations, rule)
            summary = summarise(masks, annotations.events) if masks else {}
            method = row.method if rule == config.rule else f"{row.method}, rule {rule}"
            paper = row.paper if rule == row.rule else ""
            made.append(TableRow(method, paper, len(masks), summary))
    return made


def _write(
    run: Run,
    config: TablesConfig,
    out: Path,
    rows: list[TableRow],
    features: str,
    annotations: Annotations,
) -> None:
    code = "the released code's faults and schedules" if config.released else "correct forms"
    caption = (
        f"{features}. {len(annotations.ids)} test clips, audio annotations "
        f"{annotations.audio_version}, rule {config.rule} unless said, threshold {THRESHOLD}; "
        f"{code}. Mean ± standard deviation over seeds [95 % interval over clips] (the paper's "
        "number)"
    )
    faults = {name: count for name, count in annotations.faults.items() if count}
    text = markdown(rows, caption)
    if faults:
        text += f"\nFaults in the annotation files, counted and handled: {faults}\n"
    with staged(out / "tables.md") as temporary:
        temporary.write_text(text, "utf-8")
    write_table(out / "tables.csv", rows, features)
    for name in ("tables.md", "tables.csv"):
        run.artifact(out / name)
    for row in rows:
        # MLflow takes letters, digits and a few signs, no plus and no brackets.
        method = re.sub(r"[^\w /-]", " ", row.method)
        run.log(
            run.attempt, **{f"{method}/{key}": scored.mean for key, scored in row.summary.items()}
        )
    print(f"\n{text}\n{out / 'tables.md'}\n{out / 'tables.csv'}")


def _draw(
    run: Run,
    config: TablesConfig,
    out: Path,
    jobs: Jobs,
    features: str,
    annotations: Annotations,
) -> None:
    """Draw Figure 1, and Figure 4 of the rows to compare that are finished."""
    truth = annotations.events
    assert truth is not None
    figures = [
        distribution_figure(
            out / "distribution.png",
            annotations.classes,
            event_counts(truth),
            f"events by class, {len(truth)} test clips, audio annotations "
            f"{annotations.audio_version}",
        )
    ]
    masks = {name: _decided(jobs, name, annotations, config.rule) for name in config.compare}
    means = {ROWS[n].method: mean_per_class(m, truth) for n, m in masks.items() if m}
    if means:
        panels = {
            stream: {method: mean[f"segment_{stream}"] for method, mean in means.items()}
            for stream in ("audio", "visual")
        }
        title = f"segment F by class, rule {config.rule}. {features}"
        figures.append(comparison_figure(out / "classes.png", annotations.classes, panels, title))
    for path in figures:
        run.figure(path)
        print(path)
