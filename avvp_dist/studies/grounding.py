"""What a good grounding is, decided downstream: by the parsers over encoders trained on it.

Every point of a grid of rules, false-link rates, groupings and objectives is grounded, pretrained
on and parsed with, from several seeds, beside controls that look at no features or no grounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

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
from avvp_dist.grounding.summary import GroundingSummary
from avvp_dist.reproduction.jobs import Job, Stage, raise_if_failed, run_here, run_jobs, scores
from avvp_dist.reproduction.recipes import (
    CONFIGS,
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
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.studies.grounding_table import SeedScores, StudyRow, markdown, ordered, write_csv
from avvp_dist.tracking.records import read_series
from avvp_dist.tracking.run import Run

FIGURES = ("components_per_clip", "one_component_share", "positive_pair_share")
"""What a grounding's summary says of it."""

Jobs = dict[tuple[str, int], Job]
"""By point and seed."""


@dataclass(frozen=True)
class Point:
    """A row of the study; which encoder its parsers stand on."""

    name: str
    """For the reader, and for its jobs' folders in small."""
    rule: str
    rate: float
    grouping: str
    """Empty: no encoder."""
    objective: str
    control: bool = False
    untrained: bool = False

    @property
    def grounding(self) -> str:
        """Name of its grounding; a control's looks at no threshold."""
        free = self.grouping in ("clip", "snippet")
        return self.grouping if free else f"{self.rule}-{self.rate:g}-{self.grouping}"

    @property
    def tags(self) -> dict[str, str]:
        """What its runs can be found by; what it does not depend on is left out."""
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
    rows, out = points(config), Path(config.out).absolute()
    shards = open_splits(config)
    grounding = grounding_jobs(config, out, rows, shards["train"])
    jobs = point_jobs(config, out, rows, shards, grounding)
    with parent_run("study", out, config, shards) as run:
        failed = run_here(list(grounding.values()))
        figures = {name: _summary(job) for name, job in grounding.items() if job.name not in failed}
        ready = _ready(rows, jobs, figures)
        trained = run_jobs(list(ready.values()), config.cpus, config.gpus)
        lines = [_line(config, row, ready, figures) for row in rows]
        _write(run, config, out, lines, shards)
        raise_if_failed(
            _blocked(jobs, ready, grounding, failed) | trained, len(grounding) + len(jobs), out
        )
    return out


def points(config: StudyConfig) -> list[Point]:
    """The grid that `config` asks for, then the controls.

    Raises:
        ConfigError: for fewer than two seeds, or a list that is empty.
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
    # Controls look at no threshold; the highest rate is the last that could fail to calibrate.
    first = (config.rules[0], max(config.false_link_rates))
    controls = [
        Point(f"{what} {objective}", *first, grouping, objective, control=True)
        for grouping, what in (
            ("clip", "everything in a clip is one component"),
            ("snippet", "every snippet is its own"),
        )
        for objective in config.objectives
    ]
    objective = config.objectives[0]
    return [
        *dict.fromkeys([*grid, *controls]),
        Point("untrained encoder", *first, "clip", objective, control=True, untrained=True),
        Point("no encoder", *first, "", "", control=True),
    ]


def grounding_jobs(
    config: StudyConfig, out: Path, rows: list[Point], train: ShardSet
) -> dict[str, Job]:
    """A job for each grounding, by its name, each after the one that calibrates its rate.

    Thresholds depend on the rate alone, so that one file serves every rule and grouping. All lies
    in `out`: a study leaves nothing beside the user's shards.
    """
    read = digest([__version__, train.digest])
    rates, jobs = {}, {}
    for row in rows:
        if row.rate not in rates:
            folder = out / "groundings" / f"rate-{row.rate:g}"
            thresholds = CalibrateConfig(
                shards=train.name,
                false_link_rate=row.rate,
                out=str(folder / "calibration" / "thresholds.yaml"),
                tracking=nested(config, folder),
            )
            stage = Stage("calibrate", thresholds, folder / "calibration")
            rates[row.rate] = Job(f"rate {row.rate:g}", folder, read, (stage,), experiment="study")
        if row.grouping and row.grounding not in jobs:
            folder, rate = out / "groundings" / row.grounding, rates[row.rate]
            made = GroundConfig(
                shards=train.name,
                thresholds=rate.stages[0].config.out,
                rule=row.rule,
                grouping=row.grouping,
                version=row.grounding,
                out=str(folder / "labels"),
                tracking=nested(config, folder),
            )
            jobs[row.grounding] = Job(
                f"grounding {row.grounding}",
                folder,
                read,
                (Stage("ground", made, folder / "labels"),),
                rate,
                experiment="study",
            )
    return {**{job.name: job for job in rates.values()}, **jobs}


def point_jobs(
    config: StudyConfig, out: Path, rows: list[Point], shards: Splits, grounding: dict[str, Job]
) -> Jobs:
    """One job for each point and seed: encoder, parser, its scores on val and test.

    Raises:
        ConfigError: for a wrong file or key, before anything is made.
    """
    read, jobs = parsing_digest(config, shards), {}
    for seed in range(1, config.seeds + 1):
        for row in rows:
            folder = out / "points" / f"{row.name.replace(' ', '-')}-seed{seed}"
            needs = grounding[row.grounding] if row.grouping else None
            jobs[row.name, seed] = Job(
                f"{row.name}, seed {seed}",
                folder,
                read,
                tuple(_stages(config, row, seed, folder, shards, needs)),
                needs,
                experiment="study",
                tags={**row.tags, "seed": str(seed)},
            )
    return jobs


def _stages(
    config: StudyConfig, row: Point, seed: int, folder: Path, shards: Splits, needs: Job | None
) -> list[Stage]:
    stages, checkpoint = [], ""
    if needs:
        keys = [
            f"objective.name={row.objective}",
            *config.pretrain,
            *(UNTRAINED if row.untrained else []),
            f"data.shards={shards['train'].name}",
            f"data.grounding={_labels(needs)}",
            f"trainer.seed={seed}",
        ]
        file = Path(config.encoder_config or CONFIGS / "pretrain" / "demo.yaml")
        made = training("pretrain", PretrainConfig, [file], keys, folder / "encoder", config)
        stages.append(made)
        checkpoint = str(made.out / "model")
    keys = [*parser_keys(config, shards, seed), f"pretrained.checkpoint={checkpoint}"]
    file = Path(config.parser_config or CONFIGS / "finetune" / "demo_pretrain_multi.yaml")
    parser = training("finetune", FinetuneConfig, [file], keys, folder / "parser", config)
    judged = [
        evaluation(config, parser.out / "model", shards[split], split, folder / split, f"{split}/")
        for split in ("val", "test")
    ]
    return [*stages, parser, *judged]


def _labels(job: Job) -> Path:
    """Where the grounding of a job lies."""
    made: GroundConfig = job.stages[0].config
    return Path(made.out) / made.version


def _summary(job: Job) -> dict[str, float]:
    if job.stages[0].kind != "ground":
        return {}
    figures = GroundingSummary.read(_labels(job)).figures
    return {key: figures[key] for key in FIGURES}


def _figures_of(row: Point, figures: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of the grounding that its encoder learnt from."""
    learns = row.grouping and not row.untrained
    return figures.get(row.grounding, {}) if learns else {}


def _ready(rows: list[Point], jobs: Jobs, figures: dict[str, dict[str, float]]) -> Jobs:
    """The jobs whose grounding is there, with what it is like."""
    by_name = {row.name: row for row in rows}
    ready = {}
    for (name, seed), job in jobs.items():
        row = by_name[name]
        if not row.grouping or row.grounding in figures:
            ready[name, seed] = replace(job, metrics=_figures_of(row, figures))
    return ready


def _blocked(
    jobs: Jobs, ready: Jobs, grounding: dict[str, Job], failed: dict[str, AvvpError]
) -> dict[str, AvvpError]:
    """The errors of groundings, and of the jobs that could not start for them."""
    waiting = [job for key, job in jobs.items() if key not in ready]
    return failed | {job.name: failed[job.needs.name] for job in waiting if job.needs}


def _line(
    config: StudyConfig, row: Point, jobs: Jobs, figures: dict[str, dict[str, float]]
) -> StudyRow:
    seeds = []
    for seed in range(1, config.seeds + 1):
        job = jobs.get((row.name, seed))
        if job and job.finished == len(job.stages):
            first = job.stages[0]
            auc = read_series(first.out).get("auc", {}) if first.kind == "pretrain" else {}
            learnt = auc[max(auc)] if auc and not row.untrained else None
            seeds.append(SeedScores(seed, scores(job), learnt))
    return StudyRow(row.name, row.control, row.tags, _figures_of(row, figures), tuple(seeds))


def _write(run: Run, config: StudyConfig, out: Path, lines: list[StudyRow], shards: Splits) -> None:
    features = described_features(shards["test"])
    counts = ", ".join(f"{len(shards[split])} {split}" for split in shards)
    caption = (
        f"{features}. {counts} clips, {config.seeds} seeds of encoder and parser, audio "
        f"annotations {config.audio_annotations}, rule {config.rule}. Mean ± deviation over "
        "seeds, F in %. Choose a point by validation, test is for reporting; differences below "
        "the deviation are noise"
    )
    text = markdown(lines, caption)
    with staged(out / "study.md") as temporary:
        temporary.write_text(text)
    write_csv(out / "study.csv", lines, features)
    for name in ("study.md", "study.csv"):
        run.artifact(out / name)
    print(f"\n{text}\n{out / 'study.md'}\n{out / 'study.csv'}")
    panels = {
        split: {line.name: line.values(f"{split}/segment_type_av") for line in ordered(lines)}
        for split in ("val", "test")
    }
    controls = [line.name for line in lines if line.control]
    figure = seeds_figure(out / "study.png", panels, controls, "segment Type@AV (%)", features)
    run.figure(figure)
    print(figure)
