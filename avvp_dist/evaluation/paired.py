"""Differences between arms of a study that share seeds and test clips, and what they can show.

Arms are compared pair by pair: the same labelled clips, the same seeds, the same test clips. What
they have in common cancels out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

_SAMPLES = 4000
_LEVEL, _POWER = 0.95, 0.8


@dataclass(frozen=True)
class Difference:
    """Paired difference of a score between two arms, in points."""

    mean: float
    low: float
    high: float
    """Ends of the 95 % interval over the choice of seeds and clips."""
    deviation: float
    """Standard deviation between seeds (n - 1); nan for one seed."""
    seeds: int

    def seeds_for(self, effect: float) -> int | None:
        """Number of seeds with which a two-sided test at 5 % finds `effect` with a power of 80 %.

        By the normal approximation, on these clips. None if the deviation is not known.

        Args:
            effect: difference in points.
        """
        if math.isnan(self.deviation):
            return None
        quantiles = stats.norm.ppf((1 + _LEVEL) / 2) + stats.norm.ppf(_POWER)
        return max(2, math.ceil((quantiles * self.deviation / effect) ** 2))


def paired_difference(ours: Floats, theirs: Floats) -> Difference:
    """The mean of `ours - theirs`, with a bootstrap's interval over seeds and clips.

    Seeds and clips are drawn with replacement, at the same time.

    Args:
        ours: score of each clip, in points, `[seeds, clips]`. Parsers over one encoder count as
            one seed, with their mean.
        theirs: likewise, of the other arm.
    """
    difference = ours - theirs
    seeds, clips = difference.shape
    of_seeds, of_clips = _drawn(seeds), _drawn(clips)
    by_seed = difference.mean(1)
    mean = float(by_seed.mean())
    resampled = ((of_seeds @ difference) * of_clips).sum(1)
    resampled += (_widening(seeds) - 1) * (of_seeds @ by_seed - mean)
    deviation = float(by_seed.std(ddof=1)) if seeds > 1 else math.nan
    return Difference(mean, *_ends(resampled), deviation, seeds)


@dataclass(frozen=True)
class PowerLaw:
    """The error 100 - score as a power of the number of clips: error = factor x clips^-exponent."""

    factor: float
    exponent: float
    low: float
    high: float
    """Ends of the exponent's 95 % interval over seeds."""
    samples: Floats
    """Resampled logarithms of the factor, and exponents, `[2, samples]`."""

    def score(self, clips: float) -> tuple[float, float, float]:
        """Score at a number of clips, in points, with the ends of its 95 % interval.

        The interval assumes that the law holds there.
        """
        start, exponent = self.samples
        resampled = 100 - np.exp(start - exponent * math.log(clips))
        return 100 - self.factor * clips**-self.exponent, *_ends(resampled)


def power_law(clips: Sequence[int], scores: Floats) -> PowerLaw:
    """Fit a power law to scores of growing corpora, by least squares of the logarithms.

    Args:
        clips: number of clips of each corpus; two or more numbers.
        scores: score of each corpus and seed, below 100 points, `[corpora, seeds]`.
    """

    def fitted(chosen: Floats) -> Floats:
        """Logarithm of the factor, and exponent, of the scores in each column: `[2, columns]`."""
        slope, start = np.polyfit(np.log(clips), np.log(100 - chosen), 1)
        return np.stack([start, -slope])

    found = fitted(scores.mean(1, keepdims=True))
    seeds = scores.shape[1]
    drawn = fitted(scores @ _drawn(seeds).T)
    samples = found + _widening(seeds) * (drawn - found)
    return PowerLaw(math.exp(found[0, 0]), float(found[1, 0]), *_ends(samples[1]), samples)


@functools.cache
def _drawn(count: int) -> Floats:
    """Shares of `count` things in samples drawn with replacement, `[samples, count]`."""
    rng = np.random.default_rng(count)
    return rng.multinomial(count, [1 / count] * count, size=_SAMPLES) / count


def _widening(seeds: int) -> float:
    """Factor by which means of n drawn seeds vary too little, and are judged too surely.

    It is sqrt(n / (n - 1)) times Student's quantile over the normal one. A single seed varies not
    at all, and nothing can be said of others.
    """
    if seeds < 2:
        return 1.0
    quantile = (1 + _LEVEL) / 2
    student = float(stats.t.ppf(quantile, seeds - 1) / stats.norm.ppf(quantile))
    return student * math.sqrt(seeds / (seeds - 1))


def _ends(samples: Floats) -> tuple[float, float]:
    """Ends of the interval that holds 95 % of the samples."""
    low, high = np.percentile(samples, (50 * (1 - _LEVEL), 50 * (1 + _LEVEL)))
    return float(low), float(high)
