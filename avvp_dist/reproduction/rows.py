"""The rows of the paper's tables, and the jobs that make them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avvp_dist import __version__
from avvp_dist.commit import digest
from avvp_dist.config import (
    CalibrateConfig,
    FinetuneConfig,
    GroundConfig,
    PretrainConfig,
    RefineConfig,
    TablesConfig,
)
from avvp_dist.errors import ConfigError
from avvp_dist.grounding.summary import SUMMARY
from avvp_dist.grounding.version import Grounding
from avvp_dist.reproduction.jobs import Job, Stage
from avvp_dist.reproduction.recipes import (
    CONFIGS,
    UNTRAINED,
    evaluation,
    nested,
    parser_keys,
    parsing_digest,
    training,
)
from avvp_dist.shards.shard_set import ShardSet


@dataclass(frozen=True)
class Row:
    """A row of the tables: the config in configs/finetune that trains it, and what comes before."""

    method: str
    paper: str
    file: str
    encoder: str = ""
    """Name of the encoder it stands on."""
    refines: str = ""
    """Config of the parser that refines its labels first."""
    released: str = "released"
    """Config of what the authors' code does otherwise; empty: nothing."""
    rule: str = "video"
    """The decision rule that the paper's figures of it were made with."""


def _pretrained(objective: str) -> dict[str, Row]:
    name, file = f"Pretrain ({objective})", f"pretrain_{objective}"
    return {
        file: Row(name, name, file, objective),
        f"{file}_mmil": Row(
            f"{name}, MMIL head only", name, f"{file}_mmil", objective, released="released_mmil"
        ),
    }


ROWS = {
    "han": Row("HAN", "HAN", "han", released=""),
    "ma": Row("MA (Wu et al.)", "MA", "ma", refines="ma_contrastive", released="", rule="modality"),
    "base": Row("Base", "Base", "base"),
    "base_gcaa": Row("Base+GCAA", "Base+GCAA", "base_gcaa"),
    "base_adv_skip": Row("Base+Adv+Skip", "Base+Adv+Skip", "base_adv_skip"),
    "base_adv_skip_gcaa": Row("Base+Adv+Skip+GCAA", "Base+Adv+Skip+GCAA", "base_adv_skip_gcaa"),
    **_pretrained("uni"),
    **_pretrained("cross"),
    **_pretrained("multi"),
    "untrained": Row("control: untrained encoder", "", "pretrain_multi", "untrained"),
}
"""Every row, by the name that `rows=` knows."""


def chosen_rows(config: TablesConfig) -> dict[str, Row]:
    """The rows that `config` asks for.

    Raises:
        ConfigError: for an unknown row, or outside a checkout.
    """
    if not (CONFIGS / "finetune").is_dir():
        raise ConfigError(f"{CONFIGS} does not exist: the tables are made from a checkout")
    for key, names in (("rows", config.rows), ("compare", config.compare)):
        unknown = [name for name in names if name not in ROWS]
        if unknown:
            raise ConfigError(f"{key}: there is no row {unknown[0]}, there are {', '.join(ROWS)}")
    return {name: row for name, row in ROWS.items() if not config.rows or name in config.rows}


def encoder_jobs(config: TablesConfig, out: Path, rows: dict[str, Row]) -> dict[str, Job]:
    """One job for each encoder that a row stands on; grounds its clips first if nobody did."""
    names = sorted({row.encoder for row in rows.values() if row.encoder})
    if not names:
        return {}
    shards = ShardSet(config.pretraining or Path(config.shards) / "train")
    if not any(shards.folder.glob(f"grounding/*/{SUMMARY}")):
        from avvp_dist.grounding.calibrate import calibrate
        from avvp_dist.grounding.job import ground

        if not (shards.folder / "thresholds.yaml").is_file():
            calibrate(CalibrateConfig(shards=str(shards.folder), tracking=config.tracking))
        ground(GroundConfig(shards=str(shards.folder), tracking=config.tracking))
    jobs = {}
    for name in names:
        folder = out / "encoders" / name
        objective = "multi" if name == "untrained" else name
        files = [CONFIGS / "pretrain" / f"{objective}.yaml"]
        if config.released:
            files.append(CONFIGS / "pretrain" / "released.yaml")
        keys = [
            *config.pretrain,
            *(UNTRAINED if name == "untrained" else []),
            f"data.shards={shards.name}",
        ]
        stage = training("pretrain", PretrainConfig, files, keys, folder / "pretrain", config)
        grounding = Grounding(shards, next(iter(stage.config.data.grounding), ""))
        read = digest([__version__, shards.digest, grounding.version])
        jobs[name] = Job(f"encoder {name}", folder, read, (stage,))
    return jobs


def row_jobs(
    config: TablesConfig,
    out: Path,
    rows: dict[str, Row],
    shards: dict[str, ShardSet],
    encoders: dict[str, Job],
) -> dict[tuple[str, int], Job]:
    """One job for each row and seed."""
    read, jobs = parsing_digest(config, shards), {}
    for seed in range(1, config.seeds + 1):
        for name, row in rows.items():
            folder = out / "rows" / f"{name}-seed{seed}"
            stages = _stages(config, row, seed, folder, shards, encoders)
            jobs[name, seed] = Job(
                f"{row.method}, seed {seed}",
                folder,
                read,
                tuple(stages),
                encoders.get(row.encoder),
            )
    return jobs


def _stages(
    config: TablesConfig,
    row: Row,
    seed: int,
    folder: Path,
    shards: dict[str, ShardSet],
    encoders: dict[str, Job],
) -> list[Stage]:
    """What trains and scores a row."""
    keys = parser_keys(config, shards, seed)
    released = [row.released] if config.released and row.released else []
    stages = []
    if row.refines:
        first, labels = folder / row.refines, folder / "refined" / "labels.npz"
        files = [CONFIGS / "finetune" / f"{row.refines}.yaml"]
        stages.append(training("finetune", FinetuneConfig, files, keys, first, config))
        refining = RefineConfig(
            parser=str(first / "model"), shards=shards["train"].name, out=str(labels), seed=seed,
            tracking=nested(config, folder),
        )  # fmt: skip
        stages.append(Stage("refine", refining, labels.parent))
        keys = [*keys, f"data.refined_labels={labels}"]
    if row.encoder:
        keys = [
            *keys,
            f"pretrained.checkpoint={encoders[row.encoder].folder / 'pretrain' / 'model'}",
        ]
    files = [CONFIGS / "finetune" / f"{name}.yaml" for name in [row.file, *released]]
    run, scores = folder / "parser", folder / "scores"
    stages.append(training("finetune", FinetuneConfig, files, keys, run, config))
    return [*stages, evaluation(config, run / "model", shards["test"], "test", scores)]
