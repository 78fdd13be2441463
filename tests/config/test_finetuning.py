"""Fine-tuning's keys: the packaged configs load, and MA is HAN on refined labels."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from omegaconf import OmegaConf

from avvp_dist.config import FinetuneConfig
from avvp_dist.config.files import load, packaged_configs, read_config

NAMES = [name for name in packaged_configs() if name.startswith("finetune/")]
KEYS = ["data.train=a", "data.val=b", "data.annotations=c", "trainer.out=d"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("released", [False, True])
def test_a_packaged_config_loads_alone_and_as_the_authors_released_it(
    name: str, released: bool
) -> None:
    then = "finetune/released_mmil" if name.endswith("_mmil") else "finetune/released"
    files = [name, then] if released else [name]
    made = OmegaConf.structured(load(FinetuneConfig, files, KEYS))
    merged = OmegaConf.merge(*(OmegaConf.create(read_config(file)) for file in files))
    assert OmegaConf.merge(made, merged) == made, "every key of the files has its value"
    assert merged


def test_ma_is_han_on_refined_labels() -> None:
    names = ("finetune/ma", "finetune/ma_contrastive", "finetune/han")
    ma, base, han = (load(FinetuneConfig, name, KEYS) for name in names)
    assert ma.parser == han.parser
    assert (ma.trainer.epochs, ma.trainer.export) == (12, "last")
    # Every loss has weight 1, and both stages differ in their labels only.
    assert (ma.loss.lambda_guided, ma.loss.lambda_contrastive) == (1.0, 1.0)
    assert asdict(ma) == asdict(base)
