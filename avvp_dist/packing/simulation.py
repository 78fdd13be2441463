"""A seeded corpus of simulated clip features with annotations: for demos and tests, never results.

Every class has one prototype vector per modality. A clip holds one to three events. An event is a
span of whole seconds of one class that is heard, seen or both; two of three events that are both
are in sync. The source of an event is the prototype of its class plus random noise of its own, so
that test events come from sources that training has neither heard nor seen. A snippet is the sum of
its active sources, a background that lasts the whole clip, and noise, rectified like the output of
a backbone.

The clips may also be those of given annotations. Then val and test have their dense events. Train
has weak labels alone, so one event is sampled for each label as above.
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

Events = NDArray[np.bool_]
"""Active classes of a clip, `[T, 2, C]`; axis 1: audio, visual."""
Clips = list[tuple[str, Events]]
"""Id and events of each clip."""


def simulate(config: SimulateConfig) -> Path:
    """Write `features_SPLIT.npz` for train, val and test into `config.out`.

    Without `config.annotations` the corpus gets `AVVP_*.csv` of its own.

    Returns:
        The folder.

    Raises:
        DataError: for annotations that are missing or broken, before anything is written.
    """
    out = Path(config.out)
    # Read all files first: an error in the last one must not appear after minutes of work.
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
            ids, events = list(given[split].ids), _annotated_events(rng, given[split])
        else:
            count = getattr(config, split)
            ids = [f"SIM{split[:2]}{n:06d}_0_{SNIPPETS}" for n in range(count)]
            events = [_sample_events(rng, _sample_labels(rng)) for _ in range(count)]
        corpus[split] = list(zip(ids, events, strict=True))
        path = out / f"features_{split}.npz"
        _write_features(path, corpus[split], rng, prototypes, config.noise)
    if not given:
        write_annotations(out, corpus)
    return out


def _annotated_events(rng: np.random.Generator, annotations: Annotations) -> list[Events]:
    """Events of each annotated clip; sampled for each label if there are weak labels alone."""
    if annotations.events is not None:
        return list(annotations.events)
    return [_sample_events(rng, np.flatnonzero(row)) for row in annotations.weak]


def _sample_labels(rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.choice(len(LLP_CLASSES), rng.integers(1, 4), replace=False)


def _sample_events(rng: np.random.Generator, labels: NDArray[np.int64]) -> Events:
    """One event for each class in `labels`."""
    events = np.zeros((SNIPPETS, 2, len(LLP_CLASSES)), bool)
    for label in labels:
        kind = rng.choice(["both", "heard", "seen"], p=[0.5, 0.3, 0.2])
        spans = [_span(rng), _span(rng)]
        if kind == "both" and rng.random() < 2 / 3:
            spans[1] = spans[0]
        for modality, other in ((0, "seen"), (1, "heard")):
            if kind != other:
                events[slice(*spans[modality]), modality, label] = True
    return events


def _span(rng: np.random.Generator) -> tuple[int, int]:
    """Onset and offset of an event, in snippets; it lasts at least two."""
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
    # float16 from the start: the 10,000 train clips of LLP in float64 would take gigabytes.
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
    events: Events,
    prototypes: list[NDArray[np.float64]],
    noise: float,
) -> list[NDArray[np.float64]]:
    """Audio and visual features of one clip, each `[T, D]`."""
    features = []
    for modality, prototype in enumerate(prototypes):
        dim = prototype.shape[1]
        active = events[:, modality].astype(float)
        sources = prototype + 0.7 * rng.standard_normal(prototype.shape)
        background = 0.5 * rng.standard_normal(dim)
        snippets = active @ sources + background + noise * rng.standard_normal((SNIPPETS, dim))
        features.append(np.maximum(snippets, 0))
    return features


def write_annotations(out: Path, corpus: dict[str, Clips]) -> None:
    """Write the `AVVP_*.csv` of each split: weak labels, and the events of val and test."""
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
    """Rows of an `AVVP_eval_*.csv`: clip, onset, offset and class of every event."""
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
    with staged(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([header, *rows])
