"""The rows of the paper's tables, and the jobs that make them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avvp_dist import __version__
from avvp_dist.commit import digest
from avvp_dist.config import (
    FinetuneConfig,
    PretrainConfig,
    RefineConfig,
    TablesConfig,
)
from avvp_dist.errors import ConfigError
from avvp_dist.reproduction.jobs import Command, Job
from avvp_dist.reproduction.recipes import (
    UNTRAINED,
    Splits,
    ensure_grounding,
    evaluation,
    nested,
    parser_keys,
    parsing_digest,
    training,
)
from avvp_dist.shards.shard_set import ShardSet

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Row:
    """A row of the tables: the config that trains it, and the trainings it needs before."""

    method: str
    paper: str
    """Name of the row in the paper; empty: the paper has no such row."""
    file: str
    """Name of its config in configs/finetune."""
    encoder: str = ""
    """Name of its pretrained encoder; empty: none."""
    refines: str = ""
    """Config of the parser that refines its labels first; empty: the labels are not refined."""
    released: str = "released"
    """Config of the differences of the authors' code; empty: there are none."""
    rule: str = "video"
    """The decision rule of the paper's numbers."""


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
"""Every row, by the name that `rows=` takes."""


def chosen_rows(config: TablesConfig) -> dict[str, Row]:
    """The rows that `config` asks for.

    Raises:
        ConfigError: for an unknown row.
    """
    for key, names in (("rows", config.rows), ("compare", config.compare)):
        unknown = [name for name in names if name not in ROWS]
        if unknown:
            raise ConfigError(f"{key}: there is no row {unknown[0]}, there are {', '.join(ROWS)}")
    return {name: row for name, row in ROWS.items() if not config.rows or name in config.rows}


def encoder_jobs(config: TablesConfig, out: Path, rows: dict[str, Row]) -> dict[str, Job]:
    """One job for each encoder that a row needs.

    The clips that encoders train on are calibrated and grounded first if they have no grounding.
    """
    names = sorted({row.encoder for row in rows.values() if row.encoder})
    if not names:
        return {}
    shards = ShardSet(config.pretraining or Path(config.shards) / "train")
    jobs = {}
    for name in names:
        folder = out / "encoders" / name
        objective = "multi" if name == "untrained" else name
        files = [f"pretrain/{objective}", *(["pretrain/released"] if config.released else [])]
        keys = [
            *config.pretrain,
            *(UNTRAINED if name == "untrained" else []),
            f"data.shards={shards.name}",
        ]
        encoder = training("pretrain", PretrainConfig, files, keys, folder / "pretrain", config)
        given = next(iter(encoder.config.data.grounding), "")
        grounding = ensure_grounding(shards, config.tracking, given)
        inputs = digest([__version__, shards.digest, grounding.version])
        jobs[name] = Job(f"encoder {name}", folder, inputs, (encoder,))
    return jobs


def row_jobs(
    config: TablesConfig,
    out: Path,
    rows: dict[str, Row],
    shards: Splits,
    encoders: dict[str, Job],
) -> dict[tuple[str, int], Job]:
    """One job for each row and seed."""
    inputs, jobs = parsing_digest(config, shards), {}
    for seed in range(1, config.seeds + 1):
        for name, row in rows.items():
            folder = out / "rows" / f"{name}-seed{seed}"
            jobs[name, seed] = Job(
                f"{row.method}, seed {seed}",
                folder,
                inputs,
                _commands(config, row, seed, folder, shards, encoders),
                encoders.get(row.encoder),
            )
    return jobs


def _commands(
    config: TablesConfig,
    row: Row,
    seed: int,
    folder: Path,
    shards: Splits,
    encoders: dict[str, Job],
) -> tuple[Command[DataclassInstance], ...]:
    """The commands that train and score a row."""
    keys = parser_keys(config, shards, seed)
    commands: list[Command[DataclassInstance]] = []
    if row.refines:
        files = [f"finetune/{row.refines}"]
        first = training("finetune", FinetuneConfig, files, keys, folder / row.refines, config)
        labels = folder / "refined" / "labels.npz"
        refining = RefineConfig(
            parser=str(first.out / "model"),
            shards=shards["train"].name,
            out=str(labels),
            seed=seed,
            tracking=nested(config, folder),
        )
        commands += [first, Command("refined", "refine", refining, labels.parent)]
        keys.append(f"data.refined_labels={labels}")
    if row.encoder:
        encoder = encoders[row.encoder].commands[-1]
        keys.append(f"pretrained.checkpoint={encoder.out / 'model'}")
    released = [row.released] if config.released and row.released else []
    files = [f"finetune/{name}" for name in [row.file, *released]]
    parser = training("finetune", FinetuneConfig, files, keys, folder / "parser", config)
    judged = evaluation(config, parser.out / "model", shards["test"], "test", folder / "scores")
    return (*commands, parser, judged)
