"""Figures of a probe set: what each kind of labels tells, and what does not enter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from avvp_dist.evaluation.linear_probe import FOLDS, linear_probe
from avvp_dist.evaluation.probe import ProbeLabels, ProbeVectors, probe_figures
from avvp_dist.evaluation.separation import auc_across, separation_within

CLIPS, SNIPPETS, CLASSES, DIM = 60, 4, 3, 8


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def planted(noise: float) -> tuple[ProbeVectors, ProbeLabels]:
    """Clips whose snippets are the sums of their classes' vectors, and noise."""
    rng = np.random.default_rng(0)
    events = rng.random((CLIPS, SNIPPETS, 2, CLASSES)) > 0.7
    prototypes = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0][:CLASSES]
    x = events @ prototypes + noise * rng.normal(size=(CLIPS, SNIPPETS, 2, DIM))
    lengths = rng.integers(2, SNIPPETS + 1, CLIPS)
    real = np.arange(SNIPPETS) < lengths[:, None]
    weak = (events & real[:, :, None, None]).any((1, 2))
    labels = ProbeLabels(weak, events, lengths, np.arange(CLIPS) % FOLDS)
    return ProbeVectors(unit(x[:, :, 0]), unit(x[:, :, 1])), labels


def test_the_figures_are_those_of_the_snippets_that_are_real() -> None:
    vectors, labels = planted(0.5)
    assert labels.events is not None
    found = probe_figures(vectors, labels)
    real = np.arange(SNIPPETS) < labels.lengths[:, None]
    clips = np.repeat(np.arange(CLIPS), labels.lengths)
    means = []
    for row, name in enumerate(("audio", "visual")):
        x, classes, figures = getattr(vectors, name), labels.events[:, :, row], getattr(found, name)
        within = separation_within(x, classes & real[:, :, None])
        assert (figures.within_auc, figures.different_cosine) == pytest.approx(within)
        assert figures.across_auc == auc_across(x[real], classes[real], clips)
        expected = linear_probe(x[real], classes[real], labels.folds[clips])
        assert figures.snippet_map == pytest.approx(expected)
        means.append(np.stack([x[n, :t].mean(0) for n, t in enumerate(labels.lengths)]))
        auc = auc_across(unit(means[-1]), labels.weak, np.arange(CLIPS))
        assert figures.clip_auc == pytest.approx(auc, abs=1e-6)
    expected = linear_probe(np.hstack(means), labels.weak, labels.folds)
    assert found.clip_map == pytest.approx(expected, abs=1e-6)


def test_padding_does_not_enter() -> None:
    vectors, labels = planted(0.5)
    padding = np.arange(SNIPPETS) >= labels.lengths[:, None]
    audio = np.where(padding[:, :, None], np.float32(np.nan), vectors.audio)
    changed = probe_figures(replace(vectors, audio=audio), labels)
    assert changed == probe_figures(vectors, labels)


def test_planted_classes_are_found_and_shuffled_ones_are_not() -> None:
    vectors, labels = planted(0.02)
    found = probe_figures(vectors, labels).metrics()
    assert min(found["snippet_map_audio"], found["snippet_map_visual"]) > 0.97
    assert min(found["within_auc_audio"], found["across_auc_visual"]) > 0.95
    assert found["different_cosine_audio"] < 0.1
    order = np.random.default_rng(1).permutation(CLIPS)
    assert labels.events is not None
    other = replace(labels, weak=labels.weak[order], events=labels.events[order])
    chance = probe_figures(vectors, other).metrics()
    assert chance["across_auc_audio"] == pytest.approx(0.5, abs=0.06)
    assert chance["snippet_map_audio"] == pytest.approx(labels.events.mean(), abs=0.12)
    assert chance["clip_map"] < found["clip_map"] - 0.1


def test_labels_of_clips_alone_judge_clips_alone() -> None:
    vectors, labels = planted(0.5)
    whole = probe_figures(vectors, labels).metrics()
    weak = probe_figures(vectors, replace(labels, events=None)).metrics()
    assert list(weak) == ["clip_map", "clip_auc_audio", "clip_auc_visual"]
    assert weak == {name: whole[name] for name in weak}
    assert len(whole) == 11


def test_vectors_that_are_not_finite_have_no_figures() -> None:
    vectors, labels = planted(0.5)
    vectors.visual[0, 0, 0] = np.nan
    assert probe_figures(vectors, labels).metrics() == {}
