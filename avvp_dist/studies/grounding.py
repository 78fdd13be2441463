"""The grounding study: groundings judged by the parsers over encoders that are trained on them.

Every point of a grid of rules, false-link rates, groupings and objectives gets a grounding, and
encoders and parsers from several seeds. Controls use no features or no grounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from avvp_dist import __version__
from avvp_dist.commit import digest, staged
from avvp_dist.config import (
    CalibrateConfig,
    FinetuneConfig,
    GroundConfig,
    PretrainConfig,
    StudyConfig,
)
from avvp_dist.errors import AvvpError, ConfigError
from avvp_dist.evaluation.figures import seeds_figure
from avvp_dist.evaluation.scores import SELECTION
from avvp_dist.grounding.summary import GroundingSummary
from avvp_dist.reproduction.jobs import Command, Job, raise_if_failed, run_here, run_jobs, scores
from avvp_dist.reproduction.recipes import (
    UNTRAINED,
    Splits,
    described_features,
    evaluation,
    nested,
    open_splits,
    parent_run,
    parser_keys,
    parsing_digest,
    training,
)
from avvp_dist.runtime.cluster.tasks import ray_cluster
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.studies.grounding_table import SeedScores, StudyRow, markdown, ordered, write_table
from avvp_dist.tracking.records import read_series
from avvp_dist.tracking.run import Run

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FIGURES = ("components_per_clip", "one_component_share", "positive_pair_share")
"""Statistics of a grounding that its summary holds."""

Figures = Mapping[str, float]
Jobs = dict[tuple[str, int], Job]
"""Jobs by name of the point and seed."""


@dataclass(frozen=True)
class Point:
    """A row of the study: the grounding and the encoder that its parsers are trained on."""

    name: str
    """Name in the table, and with hyphens in the folders of its jobs."""
    rule: str
    rate: float
    """False-link rate that the thresholds are calibrated for."""
    grouping: str
    """Empty: no encoder."""
    objective: str
    control: bool = False
    untrained: bool = False

    @property
    def grounding(self) -> str:
        """Name of its grounding; that of a control depends on no threshold."""
        free = self.grouping in ("clip", "snippet")
        return self.grouping if free else f"{self.rule}-{self.rate:g}-{self.grouping}"

    @property
    def tags(self) -> dict[str, str]:
        """Tags of its runs; settings that it does not depend on are left out."""
        if not self.grouping or self.untrained:
            return {"control": self.name}
        tags = {"grouping": self.grouping, "objective": self.objective}
        if self.control:
            return {"control": self.name, **tags}
        return {"rule": self.rule, "rate": f"{self.rate:g}", **tags}


def study(config: StudyConfig) -> Path:
    """Make what is missing, write `study.md`, `study.csv` and `study.png` into `config.out`.

    Raises:
        ConfigError: for fewer than two seeds, an empty grid, or a wrong key of a training.
        ClusterError: if jobs failed, after all others are done and the table is written.
    """
    points, out = study_points(config), Path(config.out).absolute()
    shards = open_splits(config)
    groundings = grounding_jobs(config, out, points, shards["train"])
    jobs = point_jobs(config, out, points, shards, groundings)
    finished = all(job.is_recorded for job in (*groundings.values(), *jobs.values()))
    with parent_run("study", out, config, shards) as run:
        # One Ray for all jobs, where each would start its own.
        with nullcontext() if finished else ray_cluster():
            failed = run_here(list(groundings.values()))
            figures = {
                point.grounding: _figures(_labels(out, point))
                for point in points
                if point.grouping and groundings[point.grounding].name not in failed
            }
            ready = _ready(points, jobs, figures)
            trained = run_jobs(list(ready.values()), config.cpus, config.gpus)
        rows = [_row(config, point, ready, figures) for point in points]
        _write(run, config, out, rows, shards)
        raise_if_failed(_blocked(jobs, ready, failed) | trained, len(groundings) + len(jobs), out)
    return out


def study_points(config: StudyConfig) -> list[Point]:
    """The grid that `config` asks for, then the controls.

    Raises:
        ConfigError: for fewer than two seeds, or an empty list.
    """
    if config.seeds < 2:
        raise ConfigError(
            f"seeds={config.seeds}: one training tells no difference from chance",
            remedy="Give seeds=2 or more",
        )
    for key in ("rules", "false_link_rates", "groupings", "objectives"):
        if not getattr(config, key):
            raise ConfigError(f"{key} is empty", remedy="Name at least one")
    grid = [
        Point(f"{rule} {rate:g} {grouping} {objective}", rule, rate, grouping, objective)
        for rule, rate, grouping, objective in product(
            config.rules, config.false_link_rates, config.groupings, config.objectives
        )
    ]
    # Controls depend on no threshold. The highest rate is the least likely to fail to calibrate.
    settings = (config.rules[0], max(config.false_link_rates))
    controls = [
        Point(f"{name} {objective}", *settings, grouping, objective, control=True)
        for grouping, name in (
            ("clip", "everything in a clip is one component"),
            ("snippet", "every snippet is its own"),
        )
        for objective in config.objectives
    ]
    objective = config.objectives[0]
    return [
        *dict.fromkeys([*grid, *controls]),
        Point("untrained encoder", *settings, "clip", objective, control=True, untrained=True),
        Point("no encoder", *settings, "", "", control=True),
    ]


def grounding_jobs(
    config: StudyConfig, out: Path, points: list[Point], train: ShardSet
) -> dict[str, Job]:
    """One job per grounding, by its name, each after the job that calibrates its rate.

    Thresholds depend on the rate alone, so that one file serves every rule and grouping. All
    results lie in `out`: a study leaves nothing beside the user's shards.
    """
    inputs = digest([__version__, train.digest])
    rates: dict[float, Job] = {}
    jobs: dict[str, Job] = {}
    for point in points:
        folder = out / "groundings" / f"rate-{point.rate:g}"
        thresholds = folder / "calibration" / "thresholds.yaml"
        if point.rate not in rates:
            calibrated = CalibrateConfig(
                shards=train.name,
                false_link_rate=point.rate,
                out=str(thresholds),
                tracking=nested(config, folder),
            )
            command = Command("calibration", "calibrate", calibrated, thresholds.parent)
            rates[point.rate] = Job(
                f"rate {point.rate:g}", folder, inputs, (command,), experiment="study"
            )
        if point.grouping and point.grounding not in jobs:
            labels = _labels(out, point)
            folder = out / "groundings" / point.grounding
            grounded = GroundConfig(
                shards=train.name,
                thresholds=str(thresholds),
                rule=point.rule,
                grouping=point.grouping,
                version=labels.name,
                out=str(labels.parent),
                tracking=nested(config, folder),
            )
            jobs[point.grounding] = Job(
                f"grounding {point.grounding}",
                folder,
                inputs,
                (Command("labels", "ground", grounded, labels.parent),),
                rates[point.rate],
                experiment="study",
            )
    return {**{job.name: job for job in rates.values()}, **jobs}


def point_jobs(
    config: StudyConfig,
    out: Path,
    points: list[Point],
    shards: Splits,
    groundings: dict[str, Job],
) -> Jobs:
    """One job for each point and seed: encoder, parser, its scores on val and test.

    Raises:
        ConfigError: for a wrong file or key, before anything is made.
    """
    inputs, jobs = parsing_digest(config, shards), {}
    for seed in range(1, config.seeds + 1):
        for point in points:
            folder = out / "points" / f"{point.name.replace(' ', '-')}-seed{seed}"
            jobs[point.name, seed] = Job(
                f"{point.name}, seed {seed}",
                folder,
                inputs,
                _commands(config, point, seed, folder, shards, _labels(out, point)),
                groundings[point.grounding] if point.grouping else None,
                experiment="study",
                tags={**point.tags, "seed": str(seed)},
            )
    return jobs


def _commands(
    config: StudyConfig, point: Point, seed: int, folder: Path, shards: Splits, labels: Path
) -> tuple[Command[DataclassInstance], ...]:
    commands: list[Command[DataclassInstance]] = []
    checkpoint = ""
    if point.grouping:
        keys = [
            f"objective.name={point.objective}",
            *config.pretrain,
            *(UNTRAINED if point.untrained else []),
            f"data.shards={shards['train'].name}",
            f"data.grounding={labels}",
            f"trainer.seed={seed}",
        ]
        files, run = [config.encoder_config], folder / "encoder"
        commands.append(training("pretrain", PretrainConfig, files, keys, run, config))
        checkpoint = str(run / "model")
    keys = [*parser_keys(config, shards, seed), f"pretrained.checkpoint={checkpoint}"]
    files, run = [config.parser_config], folder / "parser"
    commands.append(training("finetune", FinetuneConfig, files, keys, run, config))
    for split in ("val", "test"):
        out = folder / split
        commands.append(evaluation(config, run / "model", shards[split], split, out, f"{split}/"))
    return tuple(commands)


def _labels(out: Path, point: Point) -> Path:
    """Folder of a point's grounding."""
    return out / "groundings" / point.grounding / "labels" / point.grounding


def _figures(labels: Path) -> Figures:
    figures = GroundingSummary.read(labels).figures
    return {key: figures[key] for key in FIGURES}


def _figures_of(point: Point, figures: Mapping[str, Figures]) -> Figures:
    """Statistics of the grounding that the point's encoder learnt from."""
    learns = point.grouping and not point.untrained
    return figures.get(point.grounding, {}) if learns else {}


def _ready(points: list[Point], jobs: Jobs, figures: Mapping[str, Figures]) -> Jobs:
    """The jobs whose grounding is made, with its statistics as metrics."""
    by_name = {point.name: point for point in points}
    ready = {}
    for (name, seed), job in jobs.items():
        point = by_name[name]
        if not point.grouping or point.grounding in figures:
            ready[name, seed] = replace(job, metrics=_figures_of(point, figures))
    return ready


def _blocked(jobs: Jobs, ready: Jobs, failed: Mapping[str, AvvpError]) -> dict[str, AvvpError]:
    """The errors of groundings, and of the jobs that could not start for them."""
    waiting = [job for key, job in jobs.items() if key not in ready]
    return {**failed, **{job.name: failed[job.needs.name] for job in waiting if job.needs}}


def _row(config: StudyConfig, point: Point, jobs: Jobs, figures: Mapping[str, Figures]) -> StudyRow:
    seeds = []
    for seed in range(1, config.seeds + 1):
        job = jobs.get((point.name, seed))
        if job and job.is_finished:
            trains = point.grouping and not point.untrained
            auc = read_series(job.commands[0].out).get("val/auc", {}) if trains else {}
            seeds.append(SeedScores(seed, scores(job), auc[max(auc)] if auc else None))
    return StudyRow(
        point.name, point.control, point.tags, _figures_of(point, figures), tuple(seeds)
    )


def _write(run: Run, config: StudyConfig, out: Path, rows: list[StudyRow], shards: Splits) -> None:
    features = described_features(shards["test"])
    counts = ", ".join(f"{len(shards[split])} {split}" for split in shards)
    caption = (
        f"{features}. {counts} clips, {config.seeds} seeds of encoder and parser, audio "
        f"annotations {config.audio_annotations}, rule {config.rule}. Mean ± standard deviation "
        "over seeds, F in %. Choose a point by validation, test is for reporting; differences "
        "below the standard deviation are noise"
    )
    text = markdown(rows, caption)
    with staged(out / "study.md") as temporary:
        temporary.write_text(text, "utf-8")
    write_table(out / "study.csv", rows, features)
    for name in ("study.md", "study.csv"):
        run.artifact(out / name)
    print(f"\n{text}\n{out / 'study.md'}\n{out / 'study.csv'}")
    panels = {
        split: {row.name: row.values(f"{split}/{SELECTION}") for row in ordered(rows)}
        for split in ("val", "test")
    }
    controls = [row.name for row in rows if row.control]
    figure = seeds_figure(out / "study.png", panels, controls, "segment Type@AV (%)", features)
    run.figure(figure)
    print(figure)
