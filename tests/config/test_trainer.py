"""Keys of the train loop: what pretraining and fine-tuning set differently, and ranges."""

from __future__ import annotations

import pytest

from avvp_dist.config import FinetuneConfig, PretrainConfig
from avvp_dist.config.files import load
from avvp_dist.config.option import keys_of
from avvp_dist.errors import ConfigError

KEYS = ["data.shards=some/folder", "trainer.out=some/folder"]
STEPS = ["trainer.epochs=0", "trainer.max_steps=7"]


def test_both_trainings_have_the_same_keys_of_the_loop() -> None:
    loops = [
        {key.name: key.option for key in keys_of(kind) if key.name.startswith(("trainer.", "opt"))}
        for kind in (PretrainConfig, FinetuneConfig)
    ]
    assert loops[0] == loops[1]


def test_each_training_has_the_papers_schedule_by_default() -> None:
    pretrain, finetune = PretrainConfig(), FinetuneConfig()
    assert (pretrain.optimizer.schedule, finetune.optimizer.schedule) == ("cosine", "step")
    assert (pretrain.trainer.epochs, finetune.trainer.epochs) == (30, 40)
    # Pretraining's held-out AUC chooses no epoch, fine-tuning's validation does.
    assert (pretrain.trainer.export, finetune.trainer.export) == ("last", "best")


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("trainer.zero_stage=4", "is above 3"),
        ("trainer.batch_size=0", "is below 1"),
        ("trainer.keep=0", "is below 1"),
        ("trainer.precision=fp16", "is not one of fp32, tf32, bf16"),
        ("optimizer.warmup=1.5", "is above 1"),
        ("optimizer.lr=nan", "is not a finite number"),
    ],
)
def test_a_training_that_cannot_be_is_refused(override: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        load(PretrainConfig, None, [*KEYS, override])


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (
            ("trainer.compile=true", "trainer.zero_stage=3"),
            r"trainer\.compile=true, trainer\.zero_stage=3: .* take stage 0, 1 or 2",
        ),
        (
            ("trainer.gradient_accumulation=2", "trainer.zero_stage=1", "trainer.precision=bf16"),
            r"trainer\.gradient_accumulation=2, .* take stage 0, 2 or 3",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_refused(overrides: tuple[str, ...], fault: str) -> None:
    for left_out in overrides:
        load(PretrainConfig, None, [*KEYS, *(one for one in overrides if one != left_out)])
    with pytest.raises(ConfigError, match=fault):
        load(PretrainConfig, None, [*KEYS, *overrides])


def test_a_training_ends_by_epochs_or_by_steps() -> None:
    made = load(PretrainConfig, None, [*KEYS, *STEPS]).trainer
    assert (made.epochs, made.max_steps) == (0, 7)
    with pytest.raises(ConfigError, match=r"trainer\.epochs=0, trainer\.max_steps=0: .* set one"):
        load(PretrainConfig, None, [*KEYS, "trainer.epochs=0"])


def test_a_training_that_counts_steps_has_no_schedule_in_epochs() -> None:
    data = ["data.train=x", "data.val=x", "data.annotations=x", "trainer.out=x"]
    load(FinetuneConfig, None, data)
    with pytest.raises(ConfigError, match=r"optimizer\.decay_unit=epochs: the training counts st"):
        load(FinetuneConfig, None, [*data, *STEPS])
    for key in ("optimizer.decay_unit=steps", "optimizer.schedule=cosine"):
        load(FinetuneConfig, None, [*data, *STEPS, key])


def test_patience_needs_a_score_and_exports_the_best_model() -> None:
    keys = [*KEYS, "trainer.patience=2"]
    with pytest.raises(ConfigError, match=r"trainer\.patience=2, trainer\.export=last: "):
        load(PretrainConfig, None, keys)
    with pytest.raises(ConfigError, match=r"trainer\.patience=2, data\.heldout=0: "):
        load(PretrainConfig, None, [*keys, "trainer.export=best", "data.heldout=0"])
    load(PretrainConfig, None, [*keys, "trainer.export=best"])
