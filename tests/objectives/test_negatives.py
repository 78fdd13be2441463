"""Negatives from other clips, against loops: who is one, and what is left out."""

from __future__ import annotations

import pytest
import torch

from avvp_dist.objectives import negatives
from avvp_dist.objectives.grounding import unit
from avvp_dist.objectives.negatives import LinkRule, Negatives, OtherClips, other_clips_hinge
from tests.objectives.loops import LOOSE, PLAIN, Place, batch, foreign_by_loops, linked, stored

MULTI = ((0, 0), (1, 1), (0, 1), (1, 0))


def hinge_of(others: OtherClips) -> tuple[float, float]:
    """Mean hinge of the clips of `batch`, and the mean fraction that was left out."""
    audio, visual, components = batch()
    x, margin = unit(audio, visual), PLAIN.negative_margin
    found = Negatives.gather(x, components, others)
    hinge = other_clips_hinge(x, components, MULTI, margin, found)
    assert hinge.shape == found.left_out.shape == (5,)
    return float(hinge.mean()), float(found.left_out.mean())


def test_a_clip_that_occurs_twice_is_no_negative_of_itself() -> None:
    clips = [7, 3, 7, 9, 3]
    hinge, _ = hinge_of(OtherClips(torch.tensor(clips)))
    assert hinge == pytest.approx(foreign_by_loops(batch(), PLAIN, clips)[0], rel=1e-5)
    assert hinge_of(OtherClips(torch.full((5,), 7))) == (0, 0)


@pytest.mark.parametrize(
    "link_rules",
    [
        [LinkRule(LOOSE, "or")],
        [LinkRule(LOOSE, "and")],
        [LinkRule({"visual": 0.9}, "or")],
        [LinkRule(LOOSE, "or"), LinkRule({"audio": 0.7}, "and")],
        [LinkRule(LOOSE, "or"), LinkRule({}, "or")],
    ],
)
def test_what_both_groundings_would_link_is_no_negative(
    link_rules: list[LinkRule], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = stored()
    rule_index = [0, 0, 1, 1, 0] if len(link_rules) > 1 else [0] * 5

    def left_out(p: Place, q: Place) -> bool:
        return all(linked(every, p, q, link_rules[rule_index[clip]]) for clip in (p[0], q[0]))

    wanted = {name for one in link_rules for name in one.thresholds}
    features = {name: x for name, x in every.items() if name in wanted}
    others = OtherClips(torch.arange(5), features, link_rules, torch.tensor(rule_index))
    hinge, fraction = foreign_by_loops(batch(), PLAIN, left_out=left_out)
    assert 0.02 < fraction < 0.9
    for cells in (2**26, 1, 400):
        monkeypatch.setattr(negatives, "CELLS", cells)
        assert hinge_of(others) == pytest.approx((hinge, fraction), rel=1e-5), cells


def test_blocks_have_the_gradient_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for cells in (2**26, 400):
        monkeypatch.setattr(negatives, "CELLS", cells)
        audio, visual, components = batch()
        others = OtherClips(torch.arange(5), stored(), [LinkRule(LOOSE, "and")])
        x = audio.requires_grad_(), visual.requires_grad_()
        y = unit(*x)
        found = Negatives.gather(y, components, others)
        hinge = other_clips_hinge(y, components, MULTI, 0.1, found)
        gradients.append(torch.stack(torch.autograd.grad(hinge.mean(), x)))
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (LinkRule({"audio": 0.5, "visual": 0.5}, "or"), [True, True, False, True]),
        (LinkRule({"audio": 0.5, "visual": 0.5}, "and"), [True, False, False, False]),
        (LinkRule({"visual": 0.5}, "and"), [True, False, False, True]),
        (LinkRule({"visual": 1.0}, "or"), [True, False, False, False]),
        (LinkRule({}, "or"), [False] * 4),
    ],
)
def test_a_rule_links_pairs_that_reach_its_thresholds(rule: LinkRule, expected: list[bool]) -> None:
    cosines = {
        "audio": torch.tensor([0.5, 0.9, 0.4, torch.nan]),
        "visual": torch.tensor([1 - 1e-7, 0.4, torch.nan, 0.5]),  # the first pair is identical
    }
    assert rule.links(cosines).tolist() == expected
