"""Pretraining's keys: the packaged configs load, and every size can be built."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from avvp_dist.config import SIZES, OptimizerConfig, PretrainConfig, TrainerConfig
from avvp_dist.config.files import load, packaged_configs, read_config
from avvp_dist.errors import ConfigError

NAMES = [name for name in packaged_configs() if name.startswith("pretrain/")]
KEYS = ["data.shards=some/folder", "trainer.out=some/folder"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("then", ["", "pretrain/released"])
def test_a_packaged_config_loads_alone_and_as_the_authors_released_it(name: str, then: str) -> None:
    files = [name, then] if then else [name]
    made = OmegaConf.structured(load(PretrainConfig, files, KEYS))
    merged = OmegaConf.merge(*(OmegaConf.create(read_config(file)) for file in files))
    assert OmegaConf.merge(made, merged) == made, "every key of the files has its value"
    assert merged


def test_heads_divide_the_width_of_every_size() -> None:
    for layers, width, heads, feedforward in SIZES.values():
        assert width % heads == 0 and feedforward > width and layers > 0


def test_the_paper_has_one_config_per_objective() -> None:
    for name in ("uni", "cross", "multi"):
        made = load(PretrainConfig, f"pretrain/{name}", KEYS)
        assert (made.objective.name, made.encoder.size) == (name, "paper")


def test_the_config_for_gpus_scales_the_defaults_by_the_rule_that_it_names() -> None:
    """And leaves the objective's config as it is."""
    alone = load(PretrainConfig, "pretrain/multi", KEYS)
    made = load(PretrainConfig, ["pretrain/multi", "pretrain/gpu"], KEYS)
    assert (made.encoder, made.objective) == (alone.encoder, alone.objective)
    assert all(256 <= made.trainer.batch_size // gpus <= 2048 for gpus in (1, 2, 4, 8))
    grown = made.trainer.batch_size / TrainerConfig().batch_size
    assert made.optimizer.lr == pytest.approx(OptimizerConfig().lr * grown**0.5, rel=0.02)
    assert made.trainer.precision == "bf16"
    assert made.trainer.validate_every and made.trainer.checkpoint_minutes


def test_a_pretraining_without_an_objective_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.grounding=0: no objective is on"):
        load(PretrainConfig, None, [*KEYS, "objective.grounding=0"])
    with pytest.raises(ConfigError, match=r"no objective is on beside objective\.regularity"):
        load(PretrainConfig, None, [*KEYS, "objective.grounding=0", "objective.regularity=1"])
    alone = load(PretrainConfig, None, [*KEYS, "objective.grounding=0", "objective.masked=0.5"])
    assert alone.objective.weights() == {"masked": 0.5}
    both = load(PretrainConfig, "pretrain/uni", [*KEYS, "objective.masked=0.5"])
    assert (alone.objective.label, both.objective.label) == ("masked", "uni-masked")


def test_matching_needs_an_encoder_that_joins_the_modalities() -> None:
    keys = [*KEYS, "objective.matching=0.5"]
    load(PretrainConfig, None, keys)
    fault = r"objective\.matching=0\.5, encoder\.joint=false: .* take encoder\.joint=true"
    with pytest.raises(ConfigError, match=fault):
        load(PretrainConfig, None, [*keys, "encoder.joint=false"])


def test_annotations_without_the_clips_that_they_describe_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.probe_annotations: data\.probe is not given"):
        load(PretrainConfig, None, [*KEYS, "data.probe_annotations=some/folder"])
