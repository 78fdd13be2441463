"""Arms of the label study: sums of objectives and of shard sets, and the controls beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from avvp_dist.config import LabelsStudyConfig, PretrainConfig
from avvp_dist.config.files import load
from avvp_dist.errors import ConfigError
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.studies.arms import Corpus, objective_keys, open_corpus, study_arms

CORPUS = Corpus("train", ("/shards/train",), (96,))


@pytest.mark.parametrize(
    ("text", "label", "weights"),
    [
        ("multi", "multi", {"grounding": 1}),
        ("masked", "masked", {"masked": 1}),
        ("uni+0.5*masked+2*matching", "uni-masked-matching", None),
        ("0.1*contrastive+cross", "cross-contrastive", {"grounding": 1, "contrastive": 0.1}),
    ],
)
def test_a_sum_of_objectives_is_a_config(
    text: str, label: str, weights: dict[str, float] | None
) -> None:
    keys = ["data.shards=[x]", "trainer.out=x", *objective_keys(text)]
    objective = load(PretrainConfig, "pretrain/cross", keys).objective
    assert objective.label == label
    assert weights is None or objective.weights() == weights


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("multi+duo", "has the part duo. Take uni, cross, multi, contrastive"),
        ("multi+uni", "has two grounding losses"),
        ("multi+", "is no sum of names"),
        ("0*masked", "is no sum of names"),
        ("grounding", "has the part grounding"),
    ],
)
def test_what_is_no_sum_of_objectives_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        objective_keys(text)


def test_controls_stand_beside_each_objective_and_corpus() -> None:
    config = LabelsStudyConfig(objectives=["multi", "masked"])
    more = Corpus("train+wide", ("/shards/train", "/shards/wide"), (96, 40))
    arms = study_arms(config, [CORPUS, more])
    assert [arm.name for arm in arms if arm.is_control] == [
        "no encoder",
        "random, frozen",
        "random, tuned",
    ]
    assert [arm.name for arm in arms if not arm.is_control] == [
        f"{objective}, {corpus}, {use}"
        for objective in ("multi", "masked")
        for corpus in ("train", "train+wide")
        for use in ("frozen", "tuned")
    ]
    random = arms[1].encoder
    assert random is not None and {"optimizer.lr=0", "trainer.max_steps=1"} <= set(random.keys)


def test_a_fraction_of_a_corpus_is_counted_among_the_clips_that_are_trained_on(
    packed: dict[str, ShardSet],
) -> None:
    folder = packed["train"].folder.parent
    whole = open_corpus("train", folder, 0.1)
    half = open_corpus("0.5*train+val", folder, 0.1)
    assert 70 < whole.clips[0] < 96  # about a tenth is held out
    assert half.clips[0] == whole.clips[0] // 2
    assert half.places == (str(folder / "train"), str(folder / "val"))
    path = open_corpus(str(folder / "train"), Path("/elsewhere"), 0.1)
    assert path.places == whole.places
    with pytest.raises(ConfigError, match=r"takes 2 of the \d+ clips of"):
        open_corpus("2*train", folder, 0.1)
    with pytest.raises(ConfigError, match=r"takes 0\.001 of the \d+ clips of"):
        open_corpus("0.001*train", folder, 0.1)
