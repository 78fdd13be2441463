"""Events of a clip: maximal runs of snippets in which a class is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avvp_dist.evaluation.scores import Mask

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

    def to_json(self) -> dict[str, object]:
        """Plain data for a JSON file."""
        return {
            "modality": self.modality,
            "class": self.label,
            "onset": self.onset,
            "offset": self.offset,
            "confidence": self.confidence,
        }


def events_in(
    decided: Mask, frame_prob: NDArray[np.float32], classes: Sequence[str]
) -> list[Event]:
    """Collect the events of one clip, in the order of their onsets, audio before visual.

    Args:
        decided: which classes occur in which snippets, bool `[T, 2, C]`, see `decide`.
        frame_prob: probability in each snippet, `[T, 2, C]`.
        classes: names of the C classes.
    """
    outside = np.zeros((1, *decided.shape[1:]), np.int8)
    steps = np.diff(np.concatenate([outside, decided.astype(np.int8), outside]), axis=0)
    found = []
    for modality, number in np.argwhere(decided.any(axis=0)):
        onsets, offsets = (np.flatnonzero(steps[:, modality, number] == step) for step in (1, -1))
        for onset, offset in zip(onsets.tolist(), offsets.tolist(), strict=True):
            confidence = float(frame_prob[onset:offset, modality, number].mean(dtype=np.float64))
            found.append(Event(MODALITIES[modality], classes[number], onset, offset, confidence))
    return sorted(found, key=lambda event: (event.onset, event.modality))
