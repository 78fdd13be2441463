"""Progress of a long job: a live bar on a terminal, else a plain line every ten seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shards and clips done, clips per second, seconds left and errors, on stderr.

    Used as a context; call `update` for each finished shard.

    Args:
        what: name of the work, such as "grounding".
        shards, clips: their number in the whole job.
    """

    def __init__(self, what: str, shards: int, clips: int) -> None:
        self.what, self.shards, self.clips = what, shards, clips
        self.done_shards = self.done_clips = self.errors = 0
        self._started = self._said = time.monotonic()
        self._bar: tqdm[None] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=clips, desc=what, unit=" clips", unit_scale=True)

    def update(self, clips: int, errors: int = 0) -> None:
        """Count a finished shard with its number of clips and of errors."""
        self.done_shards += 1
        self.done_clips += clips
        self.errors += errors
        if self._bar is not None:
            shards = f"shards {self.done_shards}/{self.shards}, errors {self.errors}"
            self._bar.set_postfix_str(shards, refresh=False)
            self._bar.update(clips)
        elif (
            self.done_shards == self.shards
            or time.monotonic() - self._said > _SECONDS_BETWEEN_LINES
        ):
            self._said = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = self.done_clips / seconds
        left = (self.clips - self.done_clips) / max(rate, 1e-9)
        return (
            f"{self.what}: {self.done_shards:,} of {self.shards:,} shards, {self.done_clips:,} of "
            f"{self.clips:,} clips, {rate:,.0f} clips/s, {left:.0f} s left, {self.errors} errors"
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
