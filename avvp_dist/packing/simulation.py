"""A seeded corpus of simulated clip features with annotations: for demos and tests, never results.

Every class has one prototype vector per modality. A clip holds one to three events; an event is
a span of whole seconds of one class, heard only, seen only, or both (then in sync in two of three
cases). A source is a prototype plus a deviation of its own, drawn anew for every event, so that
test events come from unheard and unseen sources. A snippet is the sum of its active sources, a
background that lasts the whole clip, and noise, then rectified like the output of a backbone.

The clips may also be those of given annotations: then val and test have their dense events, and
those of train, which only has weak labels, are drawn for each label as above.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from avvp_dist.annotations.llp import (
    AUDIO_FILES,
    VISUAL_FILE,
    WEAK_FILES,
    Annotations,
    read_annotations,
)
from avvp_dist.commit import staged
from avvp_dist.config import SimulateConfig
from avvp_dist.shards.schema import LLP_CLASSES

SNIPPETS = 10

Mask = NDArray[np.bool_]
Clips = list[tuple[str, Mask]]
"""Id and truth `[T, 2, C]` of each clip."""


def simulate(config: SimulateConfig) -> Path:
    """Write `features_SPLIT.npz` for train, val and test into `config.out`.

    Without `config.annotations` their `AVVP_*.csv` are written too.

    Raises:
        DataError: for annotations that are missing or broken, before anything is written.
    """
    out = Path(config.out)
    # All of them first: a fault in the last file must not show after minutes of work.
    given = {
        split: read_annotations(config.annotations, split, snippets=SNIPPETS)
        for split in WEAK_FILES
        if config.annotations
    }
    rng = np.random.default_rng(config.seed)
    prototypes = [
        rng.standard_normal((len(LLP_CLASSES), dim))
        for dim in (config.audio_dim, config.visual_dim)
    ]
    corpus: dict[str, Clips] = {}
    for split in WEAK_FILES:
        if given:
            ids, truth = list(given[split].ids), _given_events(rng, given[split])
        else:
            count = getattr(config, split)
            ids = [f"SIM{split[:2]}{n:06d}_0_{SNIPPETS}" for n in range(count)]
            truth = [_drawn_events(rng, _drawn_labels(rng)) for _ in range(count)]
        corpus[split] = list(zip(ids, truth, strict=True))
        path = out / f"features_{split}.npz"
        _write_features(path, corpus[split], rng, prototypes, config.noise)
    if not given:
        _write_annotations(out, corpus)
    return out


def _given_events(rng: np.random.Generator, annotations: Annotations) -> list[Mask]:
    """`[T, 2, C]` of each clip, drawn where the annotations have weak labels only."""
    if annotations.events is not None:
        return list(annotations.events)
    return [_drawn_events(rng, np.flatnonzero(row)) for row in annotations.weak]


def _drawn_labels(rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.choice(len(LLP_CLASSES), rng.integers(1, 4), replace=False)


def _drawn_events(rng: np.random.Generator, labels: NDArray[np.int64]) -> Mask:
    """Who is heard and seen when: `[T, 2, C]`, axis 1: audio, visual."""
    truth = np.zeros((SNIPPETS, 2, len(LLP_CLASSES)), bool)
    for label in labels:
        kind = rng.choice(["both", "heard", "seen"], p=[0.5, 0.3, 0.2])
        spans = [_span(rng), _span(rng)]
        if kind == "both" and rng.random() < 2 / 3:
            spans[1] = spans[0]
        for modality, other in ((0, "seen"), (1, "heard")):
            if kind != other:
                truth[slice(*spans[modality]), modality, label] = True
    return truth


def _span(rng: np.random.Generator) -> tuple[int, int]:
    length = int(rng.integers(2, SNIPPETS + 1))
    onset = int(rng.integers(0, SNIPPETS - length + 1))
    return onset, onset + length


def _write_features(
    path: Path,
    clips: Clips,
    rng: np.random.Generator,
    prototypes: list[NDArray[np.float64]],
    noise: float,
) -> None:
    # Float16 from the start: LLP's 10,000 train clips at full size would be gigabytes.
    audio, visual = (
        np.empty((len(clips), SNIPPETS, prototype.shape[1]), np.float16) for prototype in prototypes
    )
    for row, (_, events) in enumerate(tqdm(clips, desc=f"simulating {path.stem}", unit=" clips")):
        audio[row], visual[row] = _features(rng, events, prototypes, noise)
    ids = np.array([clip for clip, _ in clips])
    with staged(path) as temporary, temporary.open("wb") as file:
        np.savez(file, filenames=ids, audio=audio, visual=visual)


def _features(
    rng: np.random.Generator,
    truth: Mask,
    prototypes: list[NDArray[np.float64]],
    noise: float,
) -> list[NDArray[np.float64]]:
    """Audio and visual features of one clip, each `[T, D]`."""
    made = []
    for modality, prototype in enumerate(prototypes):
        dim = prototype.shape[1]
        active = truth[:, modality].astype(float)
        sources = prototype + 0.7 * rng.standard_normal(prototype.shape)
        background = 0.5 * rng.standard_normal(dim)
        snippets = active @ sources + background + noise * rng.standard_normal((SNIPPETS, dim))
        made.append(np.maximum(snippets, 0))
    return made


def _write_annotations(out: Path, corpus: dict[str, Clips]) -> None:
    for split, clips in corpus.items():
        rows = [
            [clip, ",".join(LLP_CLASSES[c] for c in np.flatnonzero(events.any((0, 1))))]
            for clip, events in clips
        ]
        _write_rows(out / WEAK_FILES[split], ["filename", "event_labels"], rows)
    dense = corpus["val"] + corpus["test"]
    for modality, name in enumerate((AUDIO_FILES["2024"], VISUAL_FILE)):
        rows = _event_rows(dense, modality)
        _write_rows(out / name, ["filename", "onset", "offset", "event_labels"], rows)


def _event_rows(clips: Clips, modality: int) -> list[list[str]]:
    rows = []
    for clip, events in clips:
        for label in np.flatnonzero(events[:, modality].any(0)):
            edges = np.flatnonzero(np.diff(np.r_[0, events[:, modality, label], 0]))
            rows += [
                [clip, str(onset), str(offset), LLP_CLASSES[label]]
                for onset, offset in edges.reshape(-1, 2)
            ]
    return rows


def _write_rows(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with staged(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([header, *rows])
