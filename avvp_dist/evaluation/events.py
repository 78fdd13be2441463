"""Events of a clip: maximal runs of snippets in which a class is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avvp_dist.evaluation.scores import Mask, runs

MODALITIES = ("audio", "visual")


@dataclass(frozen=True)
class Event:
    """A class that is heard or seen without a break."""

    modality: str
    """`audio` or `visual`."""
    label: str
    """Name of the class."""
    onset: int
    """Second in which it begins."""
    offset: int
    """Second before which it has ended: snippet k is the time [k, k + 1)."""
    confidence: float
    """Mean probability of its snippets."""


def events_in(
    decided: Mask, frame_prob: NDArray[np.float32], classes: Sequence[str]
) -> list[Event]:
    """Collect the events of one clip, by onset, then audio before visual, then class.

    Args:
        decided: which classes occur in which snippets, bool `[T, 2, C]`, see `decide`.
        frame_prob: probability in each snippet, `[T, 2, C]`.
        classes: names of the C classes.
    """
    found = []
    for modality, name in enumerate(MODALITIES):
        for number, label in enumerate(classes):
            for onset, length in runs(decided[:, modality, number]):
                mean = frame_prob[onset : onset + length, modality, number].mean()
                # The fewest digits that tell it from other values of its type.
                found.append(Event(name, label, onset, onset + length, float(str(mean))))
    return sorted(found, key=lambda event: event.onset)
