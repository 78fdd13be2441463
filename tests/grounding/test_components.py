"""Components: the authors' own labels, and networkx on random clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from numpy.typing import NDArray

from avvp_dist.errors import ConfigError
from avvp_dist.grounding.components import components, link, silent_snippets, similarity
from avvp_dist.objectives.grounding import PADDING

F32 = np.float32
RULES: dict[str, tuple[dict[str, float], str, bool]] = {
    "released": ({"visual": 0.96, "audio": 0.99}, "and", True),
    "paper_or": ({"visual": 0.9861, "audio": 0.9967}, "or", False),
    "paper_or_loose": ({"visual": 0.96, "audio": 0.99}, "or", False),
}
"""Thresholds, rule, and whether silent snippets join nothing, of each oracle column."""


def oracle_clip(seed: int, silent: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Features of an oracle clip, drawn as the oracles' README says."""
    r = np.random.default_rng(seed)
    k = int(r.integers(1, 5))
    va = abs(r.standard_normal((k, 2048))).astype(F32)
    aa = abs(r.standard_normal((k, 128))).astype(F32)
    vi, ai = r.integers(0, k, 10), r.integers(0, k, 10)
    v = va[vi] + F32(0.15) * r.standard_normal((10, 2048)).astype(F32) * (r.random((10, 1)) < 0.7)
    a = aa[ai] + F32(0.08) * r.standard_normal((10, 128)).astype(F32) * (r.random((10, 1)) < 0.5)
    a[r.random(10) < 0.2] = silent
    return {"audio": abs(a).astype(F32), "visual": abs(v).astype(F32)}


@pytest.mark.shared
@pytest.mark.parametrize("name", RULES)
def test_components_are_the_authors(shared: Path, name: str) -> None:
    rows = json.loads((shared / "oracles" / "grounding.json").read_text())["rows"]
    reference = np.load(shared / "llp" / "silent_vggish.npy")[0]
    clips = [oracle_clip(row["seed"], reference) for row in rows]
    streams = {key: np.stack([clip[key] for clip in clips]) for key in ("audio", "visual")}
    thresholds, rule, skip_silent = RULES[name]
    silent = silent_snippets(streams["audio"], reference, 0.99) if skip_silent else None
    ids = components(link(streams, thresholds, rule, silent))
    np.testing.assert_array_equal(ids, [row[name] for row in rows])


def by_networkx(
    clip: dict[str, NDArray[Any]], limits: dict[str, float], rule: str, length: int, quiet: set[int]
) -> list[int]:
    """Algorithm 1 for one clip, in plain loops."""
    graph = nx.Graph()
    graph.add_nodes_from(range(length))
    unit = {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in clip.items()}
    for j in range(length):
        for k in range(j):
            near = [unit[name][j] @ unit[name][k] >= limit for name, limit in limits.items()]
            joined = any(near) if rule == "or" else all(near)
            if joined and j not in quiet and k not in quiet:
                graph.add_edge(j, k)
    ids = [PADDING] * len(clip["audio"])
    for members in nx.connected_components(graph):
        for member in members:
            ids[member] = min(members)
    return ids


@pytest.mark.parametrize("rule", ["or", "and"])
@pytest.mark.parametrize("snippets", range(1, 17))
def test_components_are_those_of_networkx(snippets: int, rule: str) -> None:
    clips = 120
    rng = np.random.default_rng([snippets, rule == "or"])
    streams = {
        "audio": rng.standard_normal((clips, snippets, 3)),
        "visual": rng.standard_normal((clips, snippets, 4)),
    }
    limits = {"audio": 0.9, "visual": 0.8} if rule == "or" else {"audio": 0.2, "visual": 0.1}
    lengths = rng.integers(1, snippets + 1, clips)
    lengths[: clips // 2] = snippets
    silent = (rng.random((clips, snippets)) < 0.15) & (rng.random((clips, 1)) < 0.5)
    expected = [
        by_networkx(
            {name: x[clip] for name, x in streams.items()},
            limits,
            rule,
            int(lengths[clip]),
            set(np.flatnonzero(silent[clip]).tolist()),
        )
        for clip in range(clips)
    ]
    edges = link(streams, limits, rule, silent)
    np.testing.assert_array_equal(edges, edges.transpose(0, 2, 1))
    np.testing.assert_array_equal(components(edges, lengths), expected)


def test_a_chain_of_any_length_is_one_component() -> None:
    for snippets in range(1, 60):
        edges = np.zeros((1, snippets, snippets), bool)
        steps = np.arange(snippets - 1)
        edges[0, steps, steps + 1] = edges[0, steps + 1, steps] = True
        assert not components(edges).any(), snippets


def test_padding_joins_nothing_not_even_two_snippets_it_is_near_to() -> None:
    bridge = np.eye(3, dtype=bool)[None].copy()
    bridge[0, [0, 2, 1, 2], [2, 0, 2, 1]] = True  # 0 and 1 meet in 2 only
    assert components(bridge).tolist() == [[0, 0, 0]]
    assert components(bridge, np.array([2])).tolist() == [[0, 1, PADDING]]


def test_padding_has_an_id_of_its_own() -> None:
    ids = components(np.ones((2, 4, 4), bool), np.array([2, 4]))
    assert ids.dtype == np.uint8
    assert ids.tolist() == [[0, 0, PADDING, PADDING], [0, 0, 0, 0]]


def test_zero_vectors_are_like_nothing_not_even_themselves() -> None:
    clip = np.array([[[0, 0], [3, 4], [0, 0], [3, 4]]], np.float16)
    assert similarity(clip)[0].round(6).tolist() == [
        [0, 0, 0, 0],
        [0, 1, 0, 1],
        [0, 0, 0, 0],
        [0, 1, 0, 1],
    ]
    assert components(link({"audio": clip}, {"audio": 0.5}, "or")).tolist() == [[0, 1, 2, 1]]
    assert not silent_snippets(np.zeros((1, 2, 2)), np.array([1.0, 0.0]), 0.99).any()


def test_the_largest_threshold_still_joins_identical_snippets() -> None:
    clips = np.random.default_rng(0).random((50, 1, 37), np.float32).repeat(4, 1)
    ids = components(link({"audio": clips.astype(np.float16)}, {"audio": 1.0}, "or"))
    assert not ids.any()


def test_silence_is_likeness_to_the_reference() -> None:
    reference = np.array([1.0, 0.0], F32)
    audio = np.array([[[5, 0], [5, 1], [-5, 0], [0, 1]]], np.float16)
    assert silent_snippets(audio, reference, 0.99).tolist() == [[True, False, False, False]]
    assert silent_snippets(audio, 7 * reference, 0.9).tolist() == [[True, True, False, False]]


def test_a_threshold_without_its_stream_is_named() -> None:
    streams = {"audio": np.ones((1, 2, 3)), "visual": np.ones((1, 2, 3))}
    with pytest.raises(ConfigError, match=r"stream motion.*\['audio', 'visual'\]"):
        link(streams, {"audio": 0.9, "motion": 0.9}, "or")
