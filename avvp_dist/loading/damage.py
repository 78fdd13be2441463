"""Clips that cannot be read: named, counted, and borne up to a share of all clips."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from avvp_dist.errors import DataError

log = logging.getLogger(__name__)

_NAMED = 20
"""So many faults are logged in full; the others are counted."""


class Damage:
    """What is unreadable among `clips` clips.

    Args:
        clips: how many there are.
        most: the share of them that may be unreadable.
    """

    def __init__(self, clips: int, maximum: float) -> None:
        self.clips, self.maximum = clips, maximum
        self.numbers: set[int] = set()
        self._faults = 0
        self._lock = threading.Lock()

    def __call__(self, numbers: Iterable[int], error: DataError) -> None:
        """Take note of clips that cannot be read, and why.

        Raises:
            DataError: `error` itself where nothing may be unreadable, else when it is too much.
        """
        if not self.maximum:
            raise error
        with self._lock:
            before = len(self.numbers)
            self.numbers.update(int(number) for number in numbers)
            if len(self.numbers) == before:
                return
            self._faults += 1
            if self._faults <= _NAMED:
                log.warning("left out (%d of %d clips): %s", len(self.numbers), self.clips, error)
            self.check(f", the last one: {error}")

    def merge(self, numbers: set[int]) -> None:
        """Take note of what other ranks could not read.

        Raises:
            DataError: when it is too much.
        """
        with self._lock:
            self.numbers |= numbers
            self.check()

    def check(self, last: str = "") -> None:
        """Raise `DataError` if more clips are unreadable than may be."""
        if len(self.numbers) > self.maximum * self.clips + 1e-6:
            raise DataError(
                f"{len(self.numbers)} of {self.clips} clips cannot be read, more than "
                f"data.max_bad_fraction={self.maximum:g}{last}",
                remedy="tools/inspect_shards.py --deep names every fault: mend the shard set",
            )


def raise_on_bad(numbers: Iterable[int], error: DataError) -> None:
    """Bear nothing."""
    raise error
