"""Histograms of cosines: mergeable, so that no threshold depends on how a corpus was cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEP = 1e-4
"""Width of a bin, and the precision of a threshold."""
BINS = 20_001
EDGES = -1 + STEP * np.arange(BINS)
"""Lower edge of each bin; the last one holds 1 alone."""


class CosineHistogram:
    """Counts of cosines in bins of 0.0001.

    Adding histograms is exact and commutes. A quantile therefore does not depend on how a corpus
    was cut into parts, and differs from the exact one by less than a bin.
    """

    def __init__(self, counts: NDArray[np.int64] | None = None) -> None:
        self.counts = np.zeros(BINS, np.int64) if counts is None else counts

    @classmethod
    def of(cls, cosines: NDArray[np.floating]) -> CosineHistogram:
        """Histogram of cosines of any shape, without those that are not finite.

        (A vector without direction has no finite cosine.)
        """
        finite = cosines[np.isfinite(cosines)].astype(np.float64)
        # A cosine that float32 puts a hair below an edge belongs to the bin above.
        bins = np.clip((finite + 1 + 1e-6) / STEP, 0, BINS - 1).astype(np.int64)
        return cls(np.bincount(bins, minlength=BINS).astype(np.int64))

    def __add__(self, other: CosineHistogram) -> CosineHistogram:
        return CosineHistogram(self.counts + other.counts)

    @property
    def total(self) -> int:
        """Number of cosines."""
        return int(self.counts.sum())

    def fraction_reaching(self, threshold: float) -> float:
        """Fraction of the cosines that reach a threshold of four decimals; 0 if there are none."""
        first = round((threshold + 1) / STEP)
        return float(self.counts[max(first, 0) :].sum() / max(self.total, 1))

    def threshold(self, rate: float) -> float:
        """Lowest threshold of four decimals that at most the fraction `rate` reaches.

        It is 1 if more than that have a cosine of 1.
        """
        reached = self.counts[::-1].cumsum()[::-1]
        fitting = np.flatnonzero(reached <= rate * self.total)
        first = int(fitting[0]) if len(fitting) else BINS - 1
        return round(float(EDGES[first]), 4)

    def quantile(self, q: float) -> float:
        """Lower edge of the bin that holds the `q` quantile; -1 if there are no cosines."""
        bin_ = int(np.searchsorted(self.counts.cumsum(), q * self.total))
        return round(float(EDGES[min(bin_, BINS - 1)]), 4)
