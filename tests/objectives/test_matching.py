"""Audio-visual matching: its loss in numpy, its partners, and which of them are left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avvp_dist.objectives.matching import alike, matching_loss, partner_rows
from avvp_dist.objectives.negative_pool import StoredClips
from avvp_dist.objectives.negatives import LinkRule


def test_partners_belong_to_seed_step_and_clip_and_are_spread_over_the_pool() -> None:
    clips = np.arange(2000) + 5
    rows = partner_rows(clips, 8, 0, 3)
    assert np.bincount(rows.numpy()) == pytest.approx(250, abs=60)
    assert torch.equal(partner_rows(clips[3:9], 8, 0, 3), rows[3:9])
    for key in ((0, 4), (1, 3)):
        assert not torch.equal(partner_rows(clips, 8, *key), rows)


def test_the_loss_is_the_mean_binary_cross_entropy_of_pairs_that_count() -> None:
    rng = np.random.default_rng(0)
    matched, swapped = rng.normal(size=(2, 5))
    counted = np.array([True, True, False, True, False])
    loss = matching_loss(*(torch.from_numpy(x) for x in (matched, swapped, counted)))
    probability = 1 / (1 + np.exp(-matched)), 1 / (1 + np.exp(-swapped))
    terms = -(np.log(probability[0]) + np.log(1 - probability[1])) / 2
    assert float(loss) == pytest.approx((terms * counted).mean(), rel=1e-5)


def stored(*heard: list[int], rules: list[int] | None = None) -> StoredClips:
    """Clips of four snippets by what is heard in them; -1 is padding. All look the same."""
    ids = torch.tensor(heard)
    return StoredClips(
        {
            "audio": torch.nn.functional.one_hot(ids.clamp(min=0), 8).half(),
            "visual": torch.ones(*ids.shape, 3).half(),
        },
        ids >= 0,
        torch.arange(len(ids)),
        None if rules is None else torch.tensor(rules),
    )


AUDIO, BOTH = LinkRule({"audio": 0.9}, "or"), LinkRule({"audio": 0.9, "visual": 0.9}, "or")
CLIPS = [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, -1, -1]
PARTNERS = [3, 2, 4, 4], [4, 4, 0, 4], [4, 4, -1, -1], [2, 0, 4, 4]


@pytest.mark.parametrize(
    ("link_rules", "expected"),
    [
        ([AUDIO], [True, False, False, True]),  # half of the snippets, a quarter, none, half
        ([BOTH], [True] * 4),
        ([LinkRule({"audio": 0.9, "visual": 0.9}, "and")], [True, False, False, True]),
    ],
)
def test_partners_of_which_half_would_be_linked_are_alike(
    link_rules: list[LinkRule], expected: list[bool]
) -> None:
    names = list(link_rules[0].thresholds)
    assert alike(stored(*CLIPS), stored(*PARTNERS), link_rules, names).tolist() == expected


def test_the_rules_of_both_clips_have_to_link() -> None:
    clips, partners = stored(*CLIPS, rules=[0, 0, 1, 1]), stored(*PARTNERS, rules=[0, 1, 1, 0])
    found = alike(clips, partners, [AUDIO, BOTH], ["audio", "visual"])
    assert found.tolist() == [True, False, True, True]
