"""Components: the labels of the authors' code, networkx on random clips, groupings by mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from numpy.typing import NDArray

from avvp_dist.errors import ConfigError
from avvp_dist.grounding.components import (
    components,
    directed,
    join_strength,
    silent_snippets,
    similarity,
)
from avvp_dist.objectives.grounding import PADDING

F32 = np.float32
Streams = dict[str, NDArray[Any]]
RULES: dict[str, tuple[dict[str, float], str, bool]] = {
    "released": ({"visual": 0.96, "audio": 0.99}, "and", True),
    "paper_or": ({"visual": 0.9861, "audio": 0.9967}, "or", False),
    "paper_or_loose": ({"visual": 0.96, "audio": 0.99}, "or", False),
}
"""Thresholds, rule, and whether silent snippets are isolated, for each column of the oracle."""


def strength(
    streams: Streams,
    limits: dict[str, float],
    rule: str,
    isolated: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    cosines = {name: similarity(features).cosine for name, features in streams.items()}
    return join_strength(cosines, limits, rule, isolated)


def oracle_clip(seed: int, silent: NDArray[np.float32]) -> Streams:
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
    ids = components(strength(streams, thresholds, rule, silent))
    np.testing.assert_array_equal(ids, [row[name] for row in rows])


# Reference implementations: one clip at a time, in plain loops.


def plain_strength(
    clip: Streams, limits: dict[str, float], rule: str, quiet: set[int]
) -> list[list[float]]:
    """Margin over the thresholds for each pair of snippets; -inf with a quiet snippet."""
    unit = {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in clip.items()}
    margins = [unit[name] @ unit[name].T - limit for name, limit in limits.items()]
    over = np.max(margins, 0) if rule == "or" else np.min(margins, 0)
    for snippet in quiet:
        over[snippet, :] = over[:, snippet] = -np.inf
    table: list[list[float]] = over.tolist()
    return table


def by_networkx(over: list[list[float]], length: int, neighbours: int = 99) -> list[set[int]]:
    """Components of the graph whose edges join mutual neighbours."""
    graph = nx.Graph()
    graph.add_nodes_from(range(length))

    def near(j: int, k: int) -> bool:
        stronger = sum(over[j][m] > over[j][k] for m in range(length) if m != j)
        return stronger < neighbours

    for j in range(length):
        for k in range(j):
            if over[j][k] >= 0 and near(j, k) and near(k, j):
                graph.add_edge(j, k)
    return list(nx.connected_components(graph))


def by_average_link(over: list[list[float]], length: int) -> list[set[int]]:
    """Average linkage: merge the two groups of the highest mean strength until it is negative."""
    groups = [{n} for n in range(length)]
    while len(groups) > 1:
        pairs = [(a, b) for n, a in enumerate(groups) for b in groups[:n]]
        means = [sum(over[j][k] for j in a for k in b) / (len(a) * len(b)) for a, b in pairs]
        best = int(np.argmax(means))
        if means[best] < 0:
            break
        a, b = pairs[best]
        groups = [group for group in groups if group not in (a, b)] + [a | b]
    return groups


def ids_of(groups: list[set[int]], snippets: int) -> list[int]:
    ids = [PADDING] * snippets
    for members in groups:
        for member in members:
            ids[member] = min(members)
    return ids


@pytest.mark.parametrize("grouping", ["components", "mutual-knn", "average-link"])
@pytest.mark.parametrize("rule", ["or", "and"])
@pytest.mark.parametrize("snippets", range(1, 17))
def test_groups_agree_with_plain_loops(snippets: int, rule: str, grouping: str) -> None:
    clips = 640
    rng = np.random.default_rng([snippets, rule == "or", len(grouping)])
    streams = {
        "audio": rng.standard_normal((clips, snippets, 3)),
        "visual": rng.standard_normal((clips, snippets, 4)),
    }
    limits = {"audio": 0.9, "visual": 0.8} if rule == "or" else {"audio": 0.2, "visual": 0.1}
    lengths = rng.integers(1, snippets + 1, clips)
    lengths[: clips // 2] = snippets
    silent = (rng.random((clips, snippets)) < 0.15) & (rng.random((clips, 1)) < 0.5)
    expected = []
    for clip in range(clips):
        quiet = set(np.flatnonzero(silent[clip]).tolist())
        features = {name: x[clip] for name, x in streams.items()}
        over, length = plain_strength(features, limits, rule, quiet), int(lengths[clip])
        if grouping == "average-link":
            groups = by_average_link(over, length)
        else:
            groups = by_networkx(over, length, 2 if grouping == "mutual-knn" else 99)
        expected.append(ids_of(groups, snippets))
    margin = strength(streams, limits, rule, silent)
    np.testing.assert_array_equal(margin, margin.transpose(0, 2, 1))
    np.testing.assert_array_equal(components(margin, lengths, grouping, 2), expected)


def chain(snippets: int) -> NDArray[np.float32]:
    """Margins of a clip in which each snippet is near the next one alone."""
    margin = np.full((1, snippets, snippets), -1, np.float32)
    steps = np.arange(snippets - 1)
    margin[0, steps, steps + 1] = margin[0, steps + 1, steps] = 0.1
    return margin


def test_a_chain_of_any_length_is_one_component() -> None:
    for snippets in (*range(1, 70), 128, 129, 254):
        assert not components(chain(snippets)).any(), snippets


def test_average_link_does_not_chain() -> None:
    assert components(chain(10), grouping="average-link").tolist() == [
        [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]
    ]


def test_mutual_neighbours_cut_edges_of_a_hub() -> None:
    hub = np.full((1, 5, 5), -1, np.float32)
    hub[0, 0, 1:] = hub[0, 1:, 0] = [0.4, 0.3, 0.2, 0.1]
    assert components(hub).tolist() == [[0, 0, 0, 0, 0]]
    assert components(hub, grouping="mutual-knn", neighbours=2).tolist() == [[0, 0, 0, 3, 4]]


def test_controls_look_at_no_strength() -> None:
    lengths = np.array([3, 2])
    assert components(chain(3).repeat(2, 0), lengths, "clip").tolist() == [[0, 0, 0], [0, 0, 255]]
    assert components(chain(3).repeat(2, 0), lengths, "snippet").tolist() == [
        [0, 1, 2],
        [0, 1, 255],
    ]


def test_padding_does_not_bridge_two_snippets() -> None:
    bridge = np.full((1, 3, 3), -1, np.float32)
    bridge[0, [0, 2, 1, 2], [2, 0, 2, 1]] = 1  # 0 and 1 are connected through 2 alone
    assert components(bridge).tolist() == [[0, 0, 0]]
    for grouping in ("components", "mutual-knn", "average-link"):
        assert components(bridge, np.array([2]), grouping).tolist() == [[0, 1, PADDING]]


def test_padding_has_its_own_id() -> None:
    ids = components(np.ones((2, 4, 4)), np.array([2, 4]))
    assert ids.dtype == np.uint8
    assert ids.tolist() == [[0, 0, PADDING, PADDING], [0, 0, 0, 0]]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_similarity_is_the_cosine(kind: Any) -> None:
    features = np.random.default_rng(0).standard_normal((70, 5, 9)).astype(kind)
    exact = features.astype(np.float64)
    norm = np.linalg.norm(exact, axis=-1)
    unit = exact / norm[..., None]
    result = similarity(features)
    np.testing.assert_allclose(result.cosine, unit @ unit.transpose(0, 2, 1), atol=1e-6)
    np.testing.assert_allclose(result.norm, norm, rtol=1e-6)
    assert np.abs(result.cosine).max() <= 1


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, -np.inf])
def test_vectors_without_direction_are_similar_to_nothing(bad: float) -> None:
    clip = np.array([[[0, 0], [3, 4], [0, 0], [3, 4]]], np.float16)
    clip[0, [0, 2]] = bad
    result = similarity(clip)
    far = -np.inf
    assert result.cosine[0].round(6).tolist() == [
        [far, far, far, far],
        [far, 1, far, 1],
        [far, far, far, far],
        [far, 1, far, 1],
    ]
    assert directed(result.norm).tolist() == [[False, True, False, True]]
    for limit in (0.5, -1.0):  # a threshold below 0 joins all others
        assert components(strength({"audio": clip}, {"audio": limit}, "or")).tolist() == [
            [0, 1, 2, 1]
        ]
    assert not silent_snippets(np.full((1, 2, 2), bad), np.array([1.0, 0.0]), 0.99).any()


def test_the_maximum_threshold_still_joins_identical_snippets() -> None:
    clips = np.random.default_rng(0).random((50, 1, 37), np.float32).repeat(4, 1)
    ids = components(strength({"audio": clips.astype(np.float16)}, {"audio": 1.0}, "or"))
    assert not ids.any()


def test_a_cosine_equal_to_the_threshold_joins() -> None:
    clip = {"audio": np.array([[[1, 0], [3, 4]]], F32)}
    assert components(strength(clip, {"audio": 0.6}, "or")).tolist() == [[0, 0]]
    assert components(strength(clip, {"audio": 0.6001}, "or")).tolist() == [[0, 1]]


def test_silence_is_similarity_to_the_reference() -> None:
    reference = np.array([1.0, 0.0], F32)
    audio = np.array([[[5, 0], [5, 1], [-5, 0], [0, 1]]], np.float16)
    assert silent_snippets(audio, reference, 0.99).tolist() == [[True, False, False, False]]
    assert silent_snippets(audio, 7 * reference, 0.9).tolist() == [[True, True, False, False]]


def test_a_threshold_without_its_stream_is_named() -> None:
    streams = {"audio": np.ones((1, 2, 3)), "visual": np.ones((1, 2, 3))}
    with pytest.raises(ConfigError, match=r"stream motion.*\['audio', 'visual'\]"):
        strength(streams, {"audio": 0.9, "motion": 0.9}, "or")
