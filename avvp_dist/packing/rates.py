"""Rates: feature rows at any rate become one row per snippet, which is a second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from avvp_dist.errors import ConfigError, DataError


def check_rates(rates: Mapping[str, float]) -> None:
    """Raise `ConfigError` for a rate that is neither n nor 1/n rows a second."""
    for name, rate in rates.items():
        exact = _exact(rate)
        if exact <= 0 or 1 not in (exact.numerator, exact.denominator):
            raise ConfigError(
                f"rates.{name}={rate:g}: a rate is 1, 2, 3 ... rows a second, or 1/2, 1/3 ..."
            )


def snippets_of(rows: int, rate: float) -> Fraction:
    """Seconds that a number of rows lasts."""
    return rows / _exact(rate)


def to_snippets(rows: NDArray[np.floating], rate: float) -> NDArray[np.floating]:
    """Mean of the rows of each second, or each row once for each of its seconds.

    Args:
        rows: `[R, D]`, with `rate` rows a second.

    Returns:
        float32 `[R / rate, D]`; `rows` itself if the rate is 1.

    Raises:
        DataError: if the last second is not whole.
    """
    exact = _exact(rate)
    if exact == 1:
        return rows
    if exact < 1:
        return np.repeat(rows, exact.denominator, axis=0)
    if len(rows) % exact.numerator:
        raise DataError(f"{len(rows)} rows are no whole number of seconds at {rate:g} rows each")
    pooled: NDArray[np.floating] = rows.reshape(-1, exact.numerator, rows.shape[1]).mean(
        1, dtype=np.float32
    )
    return pooled


def check_same_length(place: object, rows: Mapping[str, int], rates: Mapping[str, float]) -> int:
    """The number of snippets that all streams have.

    Args:
        place: file, for the error.
        rows: number of rows of a clip by stream.
        rates: rows a second by stream, 1 where none is given.

    Raises:
        DataError: if it is not the same one, or not whole.
        ConfigError: for the rate of a stream that is not there.
    """
    unknown = sorted(set(rates) - set(rows))
    if unknown:
        raise ConfigError(f"rates.{unknown[0]}: {place} has the streams {', '.join(sorted(rows))}")
    lengths = {name: snippets_of(count, rates.get(name, 1.0)) for name, count in rows.items()}
    if len(set(lengths.values())) > 1 or any(one.denominator > 1 for one in lengths.values()):
        counts = ", ".join(f"{name} {count}" for name, count in sorted(rows.items()))
        least = min(rows.values())
        faster = [name for name, count in sorted(rows.items()) if count > least]
        hint = " ".join(f"rates.{name}={rows[name] / least:g}" for name in faster)
        raise DataError(
            f"{place}: the streams differ in length, rows per clip are: {counts}",
            remedy=f"Give the rows a second of each stream, such as {hint or 'rates.audio=2'}, and "
            "they become one row a second; or cut them to the same seconds",
        )
    return int(next(iter(lengths.values())))


def check_usual_rows(rows: Sequence[Mapping[str, int]], rates: Mapping[str, float]) -> None:
    """Raise `DataError` if most clips have another whole rate than `rates` says.

    A single clip may be shorter in one stream; most of them are not.

    Args:
        rows: number of rows by stream, of some clips.
        rates: rows a second by stream, of `audio` among others.
    """
    for name, rate in rates.items():
        seen = Counter(
            Fraction(clip[name]) / snippets_of(clip["audio"], rates["audio"])
            for clip in rows
            if clip["audio"]
        )
        usual, count = next(iter(seen.most_common(1)), (_exact(rate), 0))
        whole = 1 in (usual.numerator, usual.denominator)
        if whole and usual != _exact(rate) and 2 * count > seen.total():
            raise DataError(
                f"{count} of {seen.total()} clips have {float(usual):g} rows of {name} a second of "
                f"audio, not {rate:g}",
                remedy=f"Give the rows a second of each stream, such as rates.{name}="
                f"{float(usual):g}",
            )


def _exact(rate: float) -> Fraction:
    return Fraction(rate).limit_denominator(1000)
