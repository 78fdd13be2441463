"""Reports of a training: the files of the run, a line for slow hashing, curves."""

from __future__ import annotations

from pathlib import Path

from avvp_dist.commit import write_json
from avvp_dist.config.files import to_yaml
from avvp_dist.loading.mixture import Mixture
from avvp_dist.runtime.ranks import Ranks
from avvp_dist.tracking.records import read_series
from avvp_dist.tracking.run import Run
from avvp_dist.training.engine import engine_config
from avvp_dist.training.task import Panels, TrainingConfig

_GIB_WORTH_A_LINE = 10.0
"""Shard sets from this size on take minutes to hash."""


def write_run_files(config: TrainingConfig, run: Run, ranks: Ranks) -> None:
    """Write the resolved config and the DeepSpeed config into the run's folder."""
    out = Path(config.trainer.out)
    (out / "config.yaml").write_text(to_yaml(config), "utf-8")
    write_json(out / "deepspeed.json", engine_config(config.optimizer, config.trainer, ranks.size))
    run.artifact(out / "deepspeed.json")


def announce_hashing(data: Mixture, verify: str) -> None:
    """Print why the first steps over large shard sets are slow."""
    gib = sum(shard.bytes for part in data.sets for shard in part.shards) / 2**30
    if gib > _GIB_WORTH_A_LINE and verify == "sha256":
        print(
            f"{gib:.0f} GiB of shards are hashed when first used; data.verify=size skips the hash"
        )


def draw_curves(out: Path, run: Run, panels: Panels) -> Path:
    """Draw the recorded series of a run as `curves.png`; a panel without any series is left out."""
    # Matplotlib takes long to import, and only rank 0 draws, at the end.
    from avvp_dist.evaluation.figures import curves_figure

    series = {
        name: (list(points), list(points.values())) for name, points in read_series(out).items()
    }
    recorded = [
        (title, [name for name in names if name in series], label) for title, names, label in panels
    ]
    drawn = [panel for panel in recorded if panel[1]]
    figure = curves_figure(out / "curves.png", series, drawn, "step", out.name)
    run.figure(figure)
    return figure
