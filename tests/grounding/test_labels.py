"""Labels and counts: silence, vectors without direction, padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avvp_dist.config import GroundConfig, LinkConfig
from avvp_dist.errors import ConfigError
from avvp_dist.grounding.labels import label, link_config_of, measure, silent_reference

LIMITS = {"audio": 0.9, "visual": 0.9}
X, Y, NOTHING = [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]


def labelled(
    audio: Any, visual: Any, length: int = 4, **keys: Any
) -> tuple[list[int], dict[str, int]]:
    """Component ids and counts of one clip."""
    link = LinkConfig(**keys)
    streams = {"audio": np.array([audio], np.float16), "visual": np.array([visual], np.float16)}
    reference = silent_reference(link, {"audio": 2, "visual": 2})
    similarities = measure(streams, np.array([length]), link, reference)
    ids, joined = label(similarities, LIMITS, link)
    return ids[0].tolist(), {**similarities.counts, **joined}


def test_joined_pairs_are_counted_by_stream_and_rule() -> None:
    ids, counts = labelled([X, X, Y, Y], [X, Y, Y, X])
    assert ids == [0, 0, 0, 0]
    assert (counts["joined/audio"], counts["joined/visual"], counts["joined"]) == (2, 2, 4)
    ids, counts = labelled([X, X, Y, Y], [X, X, Y, X], rule="and")
    assert ids == [0, 0, 2, 3]
    assert (counts["joined/audio"], counts["joined/visual"], counts["joined"]) == (2, 3, 1)


def test_a_zero_vector_joins_nothing_through_its_stream() -> None:
    ids, counts = labelled([X, NOTHING, X, X], [Y, Y, X, X])
    assert ids == [0, 0, 0, 0]
    assert (counts["zero/audio"], counts["zero/visual"]) == (1, 0)
    ids, _ = labelled([X, NOTHING, X, X], [Y, Y, X, X], rule="and")
    assert ids == [0, 1, 2, 2]


def test_a_zero_vector_can_isolate_its_snippet() -> None:
    ids, _ = labelled([X, NOTHING, X, X], [Y, Y, X, X], undirected="snippet")
    assert ids == [0, 1, 0, 0]


def test_vectors_that_are_not_finite_are_counted() -> None:
    ids, counts = labelled([X, [np.nan, 1], X, X], [Y, Y, [np.inf, 1], X], undirected="snippet")
    assert ids == [0, 1, 2, 0]
    assert (counts["not finite/audio"], counts["not finite/visual"]) == (1, 1)


def test_padding_is_not_counted() -> None:
    ids, counts = labelled([X, X, NOTHING, NOTHING], [X, Y, NOTHING, NOTHING], length=2)
    assert ids == [0, 0, 255, 255]
    assert counts == {
        "clips": 1, "snippets": 2, "short": 1, "silent": 0,
        "zero/audio": 0, "zero/visual": 0, "not finite/audio": 0, "not finite/visual": 0,
        "joined/audio": 1, "joined/visual": 0, "joined": 1,
    }  # fmt: skip


def test_silence_by_similarity_and_by_energy(tmp_path: Path) -> None:
    path = tmp_path / "silent.npy"
    np.save(path, np.array([Y, X]))
    ids, counts = labelled([X, Y, X, Y], [X, X, X, X], silent_audio=str(path))
    assert (ids, counts["silent"]) == ([0, 1, 0, 3], 2)
    ids, counts = labelled([X, [0.1, 0], X, NOTHING], [X, X, X, X], silent_energy=0.5)
    assert (ids, counts["silent"]) == ([0, 1, 0, 3], 2)


@pytest.mark.parametrize("values", [5, 0])
def test_a_silent_vector_that_does_not_fit_is_refused(tmp_path: Path, values: int) -> None:
    path = tmp_path / "silent.npy"
    if values:
        np.save(path, np.ones(values))
    message = "has 5 values, stream audio has 2" if values else "cannot be read"
    with pytest.raises(ConfigError, match=f"silent_audio: {path} {message}"):
        silent_reference(LinkConfig(silent_audio=str(path)), {"audio": 2})
    with pytest.raises(ConfigError, match="no stream audio"):
        silent_reference(LinkConfig(silent_audio=str(path)), {"visual": 2})


def test_the_link_config_of_a_stage_has_its_values() -> None:
    link = link_config_of(GroundConfig(shards="x", rule="and", silent_energy=0.5))
    assert type(link) is LinkConfig
    assert link == LinkConfig(rule="and", silent_energy=0.5)
