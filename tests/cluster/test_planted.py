"""The label study on a planted corpus, where pretraining has to help: it sees the gain.

A study that never finds a gain may be a study that cannot. Here what is heard and what is seen
share a hidden cause that labels name, so masked feature modelling must beat a random encoder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avvp_dist.config import CalibrateConfig, GroundConfig, PackConfig, TrackingConfig
from avvp_dist.grounding.calibrate import calibrate
from avvp_dist.grounding.job import ground
from avvp_dist.packing.job import pack
from tests.cluster.planted import write_planted
from tests.studies.test_labels import Study
from tests.warm_workers import WarmWorkers

MARGIN = 10.0
"""Points of segment Type@AV by which it must be better."""
SEEDS, LABELS = 10, 40
PARSER = (
    *("parser.width=32", "parser.fusion=none", "parser.skip=false", "parser.discriminator=false"),
    *("trainer.max_steps=100", "trainer.validate_every=50", "trainer.batch_size=8"),
)


@pytest.mark.launch
def test_a_gain_that_is_there_is_seen(warm_workers: WarmWorkers, tmp_path: Path) -> None:
    sizes = {"train": 400, "val": 60, "test": 120}
    source, quiet = write_planted(tmp_path / "features", sizes), TrackingConfig(enabled=False)
    for split in sizes:
        pack(PackConfig(str(source), str(tmp_path / "shards" / split), split=split, tracking=quiet))
    train = str(tmp_path / "shards" / "train")
    calibrate(CalibrateConfig(shards=train, tracking=quiet))
    ground(GroundConfig(shards=train, workers=1, tracking=quiet))
    study = Study(
        "tools/study_labels.py",
        tmp_path / "study",
        tmp_path / "shards",
        source,
        warm_workers.variables,
    )
    study.run(
        "tracking.enabled=false",
        f"labels=[{LABELS}]",
        "objectives=[masked]",
        "encoders=[frozen]",
        "learning_rates=[2e-2]",
        f"seeds={SEEDS}",
        "tuning_seeds=1",
        "pretrain=[trainer.max_steps=80,trainer.batch_size=32,optimizer.lr=2e-3]",
        f"finetune=[{','.join(PARSER)}]",
    )
    scores = {
        (row["arm"], int(row["seed"])): float(row["test/segment_type_av"])
        for row in study.rows("study.csv")
    }
    gains = [
        scores["masked, train, frozen", seed] - scores["random, frozen", seed]
        for seed in range(1, SEEDS + 1)
    ]
    assert np.mean(gains) > MARGIN
    text = (study.out / "study.md").read_text()
    assert "`masked, train, frozen` validates best" in text and "So pretraining helps here" in text
