"""A seeded corpus of simulated clip features with annotations: for demos and tests, never results.

Every class has one prototype vector per modality. A clip holds one to three events; an event is
a span of whole seconds of one class, heard only, seen only, or both (then in sync in two of three
cases). A source is a prototype plus a deviation of its own, drawn anew for every event, so that
test events come from unheard and unseen sources. A snippet is the sum of its active sources, a
background that lasts the whole clip, and noise, then rectified like the output of a backbone.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from avvp_dist.commit import staged
from avvp_dist.config import SimulateConfig
from avvp_dist.data.schema import LLP_CLASSES

SNIPPETS = 10


def simulate(config: SimulateConfig) -> Path:
    """Write `features_SPLIT.npz` and `AVVP_*.csv` for train, val and test into `config.out`."""
    out = Path(config.out)
    rng = np.random.default_rng(config.seed)
    classes = len(LLP_CLASSES)
    prototypes = [
        rng.standard_normal((classes, dim)) for dim in (config.audio_dim, config.visual_dim)
    ]
    dense: list[tuple[str, NDArray[np.bool_]]] = []
    for split in ("train", "val", "test"):
        count = getattr(config, split)
        truth = [_events(rng, classes) for _ in range(count)]
        ids = [f"SIM{split[:2]}{n:06d}_0_{SNIPPETS}" for n in range(count)]
        shown = tqdm(truth, desc=f"simulating {split}", unit=" clips")
        clips = [_features(rng, events, prototypes, config.noise) for events in shown]
        with staged(out / f"features_{split}.npz") as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                filenames=np.array(ids),
                audio=np.stack([clip[0] for clip in clips]).astype(np.float16),
                visual=np.stack([clip[1] for clip in clips]).astype(np.float16),
            )
        _write_weak(out / f"AVVP_{split}{'' if split == 'train' else '_pd'}.csv", ids, truth)
        if split != "train":
            dense += zip(ids, truth, strict=True)
    for modality, name in enumerate(("audio", "visual")):
        _write_events(out / f"AVVP_eval_{name}.csv", dense, modality)
    return out


def _events(rng: np.random.Generator, classes: int) -> NDArray[np.bool_]:
    """Who is heard and seen when: `[T, 2, C]`, axis 1: audio, visual."""
    truth = np.zeros((SNIPPETS, 2, classes), bool)
    for label in rng.choice(classes, rng.integers(1, 4), replace=False):
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


def _features(
    rng: np.random.Generator,
    truth: NDArray[np.bool_],
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


def _write_weak(path: Path, ids: list[str], truth: list[NDArray[np.bool_]]) -> None:
    rows = [
        [clip, ",".join(LLP_CLASSES[c] for c in np.flatnonzero(events.any((0, 1))))]
        for clip, events in zip(ids, truth, strict=True)
    ]
    _write_rows(path, ["filename", "event_labels"], rows)


def _write_events(path: Path, clips: list[tuple[str, NDArray[np.bool_]]], modality: int) -> None:
    rows = []
    for clip, events in clips:
        for label in np.flatnonzero(events[:, modality].any(0)):
            edges = np.flatnonzero(np.diff(np.r_[0, events[:, modality, label], 0]))
            rows += [
                [clip, str(onset), str(offset), LLP_CLASSES[label]]
                for onset, offset in edges.reshape(-1, 2)
            ]
    _write_rows(path, ["filename", "onset", "offset", "event_labels"], rows)


def _write_rows(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with staged(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([header, *rows])
