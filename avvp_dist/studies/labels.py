"""The label study: parsers with and without pretraining, by number of labelled clips.

All arms share their seeds: seed n chooses the labelled clips, of which fewer are among more, and
the weights of encoder and parser. So arms are compared pair by pair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avvp_dist import __version__
from avvp_dist.annotations.llp import Annotations, read_annotations
from avvp_dist.commit import digest
from avvp_dist.config import FinetuneConfig, LabelsStudyConfig, PretrainConfig
from avvp_dist.config.files import load
from avvp_dist.errors import ConfigError
from avvp_dist.evaluation.predictions import Predictions
from avvp_dist.evaluation.scores import SELECTION, THRESHOLD, score_clips
from avvp_dist.reproduction.jobs import Command, Job, raise_if_failed, run_jobs, scores
from avvp_dist.reproduction.recipes import (
    Splits,
    ensure_grounding,
    evaluation,
    open_splits,
    parent_run,
    parser_keys,
    parsing_digest,
    training,
)
from avvp_dist.runtime.cluster.tasks import ray_cluster
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.studies.arms import Arm, Corpus, Encoder, open_corpus, study_arms
from avvp_dist.studies.labels_report import PointScores, Report, write_report
from avvp_dist.tracking.records import read_series

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PROBE = "val/probe_"


@dataclass(frozen=True)
class Trial:
    """Parsers of one point and seed."""

    arm: Arm
    labels: int
    """Number of labelled clips."""
    rate: float
    """Learning rate of the parsers."""
    seed: int

    @property
    def name(self) -> str:
        """Name of its job."""
        return f"{self.arm.name}, {self.labels} labels, lr {self.rate:g}, seed {self.seed}"


Jobs = dict[Trial, Job]


def study_labels(config: LabelsStudyConfig) -> Path:
    """Make what is missing; `study.md`, `study.csv` and figures lie in `config.out`.

    Raises:
        ConfigError: for too few seeds, an empty list, or a wrong arm or key of a training.
        ClusterError: if jobs failed, after all others are done and the table is written.
    """
    _check(config)
    out, shards = Path(config.out).absolute(), open_splits(config)
    counts = label_counts(config, shards["train"])
    heldout = load(PretrainConfig, config.encoder_config, _unread(config.pretrain)).data.heldout
    corpora = [
        open_corpus(text, Path(config.shards).absolute(), heldout)
        for text in dict.fromkeys(config.corpora)
    ]
    arms = study_arms(config, corpora)
    encoders = encoder_jobs(config, out, arms, shards)
    trials = [
        Trial(arm, count, rate, seed)
        for seed in range(1, config.seeds + 1)
        for count in counts
        for arm in arms
        for rate in config.learning_rates
    ]
    jobs = trial_jobs(config, out, trials, shards, encoders)
    first = {t: job for t, job in jobs.items() if t.seed <= config.tuning_seeds}
    needed = [*encoders.values(), *first.values()]
    with parent_run("study", out, config, shards) as run, ray_cluster():  # one for both rounds
        failed = run_jobs(needed, config.cpus, config.gpus, fresh=False)
        rates = chosen_rates(first)
        final = {t: job for t, job in jobs.items() if rates.get((t.arm, t.labels)) == t.rate}
        rest = [job for trial, job in final.items() if trial not in first]
        failed |= run_jobs(rest, config.cpus, config.gpus, fresh=False)
        found = _scores(config, final, shards)
        write_report(
            run, out, Report(config, shards, arms, counts, rates, found, _probes(encoders))
        )
        raise_if_failed(failed, len(needed) + len(rest), out)
    return out


def label_counts(config: LabelsStudyConfig, train: ShardSet) -> list[int]:
    """Numbers of labelled clips, ascending; 0 in the config means all that are trained on.

    Raises:
        ConfigError: if a number exceeds the clips of the shard set.
    """
    usable = int((~train.excluded).sum())
    counts = sorted({count or usable for count in config.labels})
    if counts[-1] > usable:
        raise ConfigError(f"labels={config.labels}: {train.name} has {usable:,} clips to train on")
    return counts


def encoder_jobs(
    config: LabelsStudyConfig, out: Path, arms: Sequence[Arm], shards: Splits
) -> dict[tuple[Encoder, int], Job]:
    """One job for each encoder and seed. Shard sets without a grounding get one first.

    Raises:
        ConfigError: for a wrong file or key.
    """
    jobs = {}
    val = shards["val"].name
    quiet = _quiet(config)
    for encoder in dict.fromkeys(arm.encoder for arm in arms if arm.encoder):
        inputs = _corpus_digest(config, encoder.corpus)
        for seed in range(1, config.seeds + 1):
            name = f"encoder {encoder.name}, seed {seed}"
            folder = out / "encoders" / _slug(f"{encoder.name} seed {seed}")
            keys = [
                *config.pretrain,
                *encoder.keys,
                f"data.subset={seed}",
                f"data.probe={val}",
                f"data.probe_annotations={Path(config.annotations).absolute()}",
                f"trainer.seed={seed}",
            ]
            run = folder / "pretrain"
            command = training(
                "pretrain", PretrainConfig, [config.encoder_config], keys, run, quiet
            )
            jobs[encoder, seed] = Job(name, folder, inputs, (command,), experiment="study")
    return jobs


def trial_jobs(
    config: LabelsStudyConfig,
    out: Path,
    trials: Sequence[Trial],
    shards: Splits,
    encoders: Mapping[tuple[Encoder, int], Job],
) -> Jobs:
    """One job for each trial: its parsers and their scores on val and test.

    Raises:
        ConfigError: for a wrong file or key, before anything is made.
    """
    inputs, quiet = parsing_digest(config, shards), _quiet(config)
    jobs = {}
    for trial in trials:
        folder = out / "parsers" / _slug(trial.name)
        encoder = encoders[trial.arm.encoder, trial.seed] if trial.arm.encoder else None
        commands: list[Command[DataclassInstance]] = []
        for parser in range(1, config.parsers + 1):
            keys = [
                *parser_keys(config, shards, (trial.seed - 1) * config.parsers + parser),
                *trial.arm.keys,
                f"data.clips=[{trial.labels}]",
                f"data.subset={trial.seed}",
                f"optimizer.lr={trial.rate}",
                f"pretrained.checkpoint={encoder.commands[0].out / 'model' if encoder else ''}",
            ]
            run = folder / f"parser{parser}"
            commands.append(
                training("finetune", FinetuneConfig, [config.parser_config], keys, run, quiet)
            )
            for split in ("val", "test"):
                made = folder / f"{split}{parser}"
                commands.append(
                    evaluation(
                        quiet, run / "model", shards[split], split, made, f"{split}/{parser}/"
                    )
                )
        jobs[trial] = Job(trial.name, folder, inputs, tuple(commands), encoder, experiment="study")
    return jobs


def chosen_rates(tried: Mapping[Trial, Job]) -> dict[tuple[Arm, int], float]:
    """The learning rate of each arm and number of labels: the best on validation.

    A rate counts if all its seeds are finished; of equally good ones the smallest is taken.
    """
    found: dict[tuple[Arm, int], dict[float, list[float]]] = {}
    for trial, job in tried.items():
        rates = found.setdefault((trial.arm, trial.labels), {})
        values = rates.setdefault(trial.rate, [])
        if job.is_finished:
            named = [
                value
                for key, value in scores(job).items()
                if re.fullmatch(rf"val/\d+/{SELECTION}", key)
            ]
            values.append(float(np.mean(named)))
    chosen = {}
    for point, rates in found.items():
        seeds = max(len(values) for values in rates.values())
        whole = {rate: np.mean(v) for rate, v in sorted(rates.items()) if seeds and len(v) == seeds}
        if whole:
            chosen[point] = max(whole, key=lambda rate: whole[rate])
    return chosen


def _scores(
    config: LabelsStudyConfig, final: Jobs, shards: Splits
) -> dict[tuple[Arm, int], PointScores]:
    """Scores of the finished parsers of each point, by seed."""
    truths = {
        split: read_annotations(
            config.annotations,
            split,
            audio_version=config.audio_annotations,
            snippets=shards[split].snippets,
        )
        for split in ("val", "test")
    }
    found: dict[tuple[Arm, int], PointScores] = {}
    for trial, job in final.items():
        if job.is_finished:
            found.setdefault((trial.arm, trial.labels), {})[trial.seed] = {
                split: _clip_scores(job, split, truth, config.rule)
                for split, truth in truths.items()
            }
    return found


def _clip_scores(
    job: Job, split: str, truth: Annotations, rule: str
) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Score of each clip in percent, `[clips]`: the mean of the job's parsers."""
    assert truth.events is not None
    every = []
    for command in job.commands:
        if command.stage == "evaluate" and command.prefix.startswith(f"{split}/"):
            path = command.out / "predictions.npz"
            decided = Predictions.load(path).ordered(truth, path).decided(rule, THRESHOLD)
            every.append(score_clips(decided, truth.events))
    return {key: np.mean([one[key] for one in every], axis=0) for key in every[0]}


def _probes(encoders: Mapping[tuple[Encoder, int], Job]) -> dict[str, dict[str, list[float]]]:
    """Figures of the probe after the last step, by encoder and name, one for each seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for (encoder, _), job in encoders.items():
        if not job.is_finished:
            continue
        for key, series in read_series(job.commands[0].out).items():
            name = key.removeprefix(PROBE)
            if name == key or name.startswith("random_"):
                continue
            who = "raw features" if name.startswith("raw_") else encoder.name
            values = found.setdefault(who, {}).setdefault(name.removeprefix("raw_"), [])
            values.append(series[max(series)])
    return found


def _check(config: LabelsStudyConfig) -> None:
    if config.seeds < 2:
        raise ConfigError(
            f"seeds={config.seeds}: one training tells no difference from chance",
            remedy="Give seeds=2 or more; ten show what two cannot",
        )
    if config.tuning_seeds > config.seeds:
        raise ConfigError(f"tuning_seeds={config.tuning_seeds} are more than seeds={config.seeds}")
    for key in ("labels", "corpora", "objectives", "encoders", "learning_rates"):
        if not getattr(config, key):
            raise ConfigError(f"{key} is empty", remedy="Name at least one")


def _quiet(config: LabelsStudyConfig) -> LabelsStudyConfig:
    """The config for trainings. There are hundreds, so only points are runs of MLflow."""
    return replace(config, tracking=replace(config.tracking, enabled=False, figures=False))


def _corpus_digest(config: LabelsStudyConfig, corpus: Corpus) -> str:
    parts = [ShardSet(place) for place in corpus.places]
    versions = [ensure_grounding(part, config.tracking).version for part in parts]
    return digest([__version__, *(part.digest for part in parts), *versions])


def _unread(keys: Sequence[str]) -> list[str]:
    """Keys with values for those that every config needs, which are not looked at."""
    return [*keys, "data.shards=[-]", "trainer.out=-"]


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name)
