"""Progress of a long job: a live bar on a terminal, else a plain line every ten seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Parts and clips done, clips per second, seconds left and errors, on stderr.

    Used as a context; call `update` for each finished part.

    Args:
        what: name of the work, such as "grounding".
        total: number of parts in the whole job.
        clips: number of clips in the whole job.
        parts: name of the parts.
    """

    def __init__(self, what: str, total: int, clips: int, parts: str = "shards") -> None:
        self.what, self.total, self.clips, self.parts = what, total, clips, parts
        self.done = self.done_clips = self.errors = 0
        self._started = self._said = time.monotonic()
        self._bar: tqdm[None] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=clips, desc=what, unit=" clips", unit_scale=True)

    def update(self, clips: int, errors: int = 0) -> None:
        """Count a finished part with its number of clips and of errors."""
        self.done += 1
        self.done_clips += clips
        self.errors += errors
        if self._bar is not None:
            parts = f"{self.parts} {self.done}/{self.total}, errors {self.errors}"
            self._bar.set_postfix_str(parts, refresh=False)
            self._bar.update(clips)
        elif self.done == self.total or time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = self.done_clips / seconds
        left = (self.clips - self.done_clips) / max(rate, 1e-9)
        return (
            f"{self.what}: {self.done:,} of {self.total:,} {self.parts}, {self.done_clips:,} of "
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
