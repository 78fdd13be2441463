"""What the tables and the study have in common: their data, and the stages of their jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avvp_dist import __version__
from avvp_dist.commit import digest, sha256
from avvp_dist.config import EvaluateConfig, SweepConfig, TrackingConfig
from avvp_dist.config.files import load
from avvp_dist.reproduction.jobs import Stage
from avvp_dist.shards.schema import HAN_EXTRACTOR
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.tracking.run import Run

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
UNTRAINED = ["optimizer.lr=0", "trainer.max_steps=1"]
"""Keys that make an encoder a control: as it was drawn."""

Splits = dict[str, ShardSet]


def open_splits(config: SweepConfig) -> Splits:
    """The shard sets train, val and test, in this order."""
    return {split: ShardSet(Path(config.shards) / split) for split in ("train", "val", "test")}


def parent_run(experiment: str, out: Path, config: SweepConfig, shards: Splits) -> Run:
    """The run that all jobs' runs are nested under; the same command again goes on with it."""
    inputs = {one.name: one.digest for one in shards.values()}
    tags = {f"manifest.{split}": one.digest for split, one in shards.items()}
    return Run(experiment, out, config, tags, inputs=inputs, resume=True)


def described_features(test: ShardSet) -> str:
    """What the numbers belong to, for every title."""
    extractor = test.manifest["extractor"]
    if extractor == HAN_EXTRACTOR:
        return "HAN's features"
    if "simulated" in extractor:
        return "Simulated features: no statement about LLP"
    return f"Features of {extractor or 'an unnamed extractor'}: not comparable with the paper's"


def parsing_digest(config: SweepConfig, shards: Splits) -> str:
    """Hash of everything that parsers are trained on and scored with."""
    csvs = {path.name: sha256(path) for path in sorted(Path(config.annotations).glob("AVVP_*"))}
    return digest([__version__, csvs, *(one.digest for one in shards.values())])


def parser_keys(config: SweepConfig, shards: Splits, seed: int) -> list[str]:
    """KEY=VALUE of every parser's training."""
    return [
        *config.finetune,
        f"data.train={shards['train'].name}",
        f"data.val={shards['val'].name}",
        f"data.annotations={Path(config.annotations).absolute()}",
        f"data.audio_annotations={config.audio_annotations}",
        f"trainer.seed={seed}",
    ]


def training(
    kind: str, schema: type[Any], files: list[Path], keys: list[str], out: Path, config: SweepConfig
) -> Stage:
    """A training into `out`, in its job's folder, that goes on where it was.

    Raises:
        ConfigError: for a wrong file, key or value.
    """
    made = load(schema, files, [*keys, f"trainer.out={out}", "trainer.resume=auto"])
    made.tracking = nested(config, out.parent)
    return Stage(kind, made, out)


def evaluation(
    config: SweepConfig, parser: Path, shards: ShardSet, split: str, out: Path, prefix: str = ""
) -> Stage:
    """The scores of an exported parser on a split, into `out`, in its job's folder."""
    judged = EvaluateConfig(
        parser=str(parser),
        shards=shards.name,
        annotations=str(Path(config.annotations).absolute()),
        audio_annotations=config.audio_annotations,
        split=split,
        rule=config.rule,
        out=str(out),
        tracking=nested(config, out.parent),
    )
    return Stage("evaluate", judged, out, prefix)


def nested(config: SweepConfig, job: Path) -> TrackingConfig:
    """Not registered: dozens of parsers for a table are not candidates for use."""
    return TrackingConfig(enabled=config.tracking.enabled, register=False, parent=str(job))
