"""Clips that cannot be read: named, counted, and tolerated up to a fraction of all clips."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from avvp_dist.errors import DataError

log = logging.getLogger(__name__)

_MAXIMUM_LOGGED = 20
"""Number of faults that are logged in full; further ones are only counted."""


class Damage:
    """Unreadable clips of a data set; an instance is an `OnBad` callback.

    Args:
        clips: number of all clips.
        maximum: fraction of them that may be unreadable.
    """

    def __init__(self, clips: int, maximum: float) -> None:
        self.clips, self.maximum = clips, maximum
        self.numbers: set[int] = set()
        self._faults = 0
        self._lock = threading.Lock()

    def __call__(self, numbers: Iterable[int], error: DataError) -> None:
        """Record clips that cannot be read, and the reason.

        Raises:
            DataError: `error` itself if no clip may be unreadable, else if too many are.
        """
        if not self.maximum:
            raise error
        with self._lock:
            before = len(self.numbers)
            self.numbers.update(int(number) for number in numbers)
            if len(self.numbers) == before:
                return
            self._faults += 1
            if self._faults <= _MAXIMUM_LOGGED:
                log.warning("left out (%d of %d clips): %s", len(self.numbers), self.clips, error)
            self.check(f", the last one: {error}")

    def merge(self, numbers: set[int]) -> None:
        """Record the clips that other ranks could not read.

        Raises:
            DataError: if too many clips are unreadable.
        """
        with self._lock:
            self.numbers |= numbers
            self.check()

    def check(self, last: str = "") -> None:
        """Raise `DataError` if more clips are unreadable than `data.max_bad_fraction` allows."""
        if len(self.numbers) > self.maximum * self.clips + 1e-6:
            raise DataError(
                f"{len(self.numbers)} of {self.clips} clips cannot be read, more than "
                f"data.max_bad_fraction={self.maximum:g}{last}",
                remedy="avvp inspect --deep names every fault: mend the shard set",
            )
