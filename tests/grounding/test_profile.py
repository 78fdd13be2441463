"""Profiles of component ids: figures checked clip by clip, sums of parts, and the JSON form."""

from __future__ import annotations

import json

import numpy as np

from avvp_dist.grounding.profile import ComponentProfile


def test_profiles_of_parts_add_up_to_that_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    ids = np.minimum(rng.integers(0, 6, (30, 6)), np.arange(6)).astype(np.uint8)
    ids[:5, 4:] = 255
    ids[5] = 255  # a clip without labels
    whole = ComponentProfile.of(ids)
    parts = ComponentProfile.of(ids[:7]) + ComponentProfile.of(ids[7:])
    assert parts.plain() == whole.plain()
    groups = [[row[row != 255].tolist().count(n) for n in set(row[row != 255])] for row in ids]
    assert whole.figures["components_per_clip"] == sum(map(len, groups)) / 29
    assert whole.figures["one_component_share"] == sum(len(g) == 1 for g in groups) / 29
    pairs = [sum(sizes) * (sum(sizes) - 1) for sizes in groups]
    same = [n * (n - 1) for sizes in groups for n in sizes]
    assert whole.figures["positive_pair_share"] == sum(same) / sum(pairs)


def test_the_json_form_comes_back() -> None:
    profile = ComponentProfile.of(np.array([[0, 0, 2], [0, 1, 255]], np.uint8))
    parsed = ComponentProfile.parse(json.loads(json.dumps(profile.plain())))
    assert parsed.plain() == profile.plain()
    assert profile.plain() == {
        "sizes": [3, 1, 0], "per_clip": [0, 2, 0], "positive": 1, "pairs": 4,
    }  # fmt: skip


def test_the_text_tells_the_figures() -> None:
    profile = ComponentProfile.of(np.array([[0, 0, 0], [0, 1, 2]], np.uint8))
    assert profile.described() == (
        "2.00 components a clip, 50.0% of clips are one component, 50.0% of pairs are positive"
    )
