"""Journals: what became of each media file, written by the process that decodes it."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

JOURNALS = "media-*.jsonl"
"""Names of the journals, one for each shard."""
BEGUN = ("begun", "alone")
"""States of files that have not ended."""
_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class MediaRecord:
    """Outcome of a file: a line of the ledger."""

    id: str
    source: str
    state: str
    """`begun` beside others, `alone` if begun without others, `done` or `failed`. In journals also
    `unread`: the job stopped for another reason, such as a server that could not be read."""
    reason: str = ""
    seconds: int = 0
    clips: int = 0
    frames: int = 0
    packet_errors: int = 0
    decode_seconds: float = 0.0
    compute_seconds: float = 0.0
    write_seconds: float = 0.0
    """Time that the writing of the shard's tar took, divided by the files that are in it."""
    shard: str = ""
    """Name of the tar that holds its clips; in the ledger only, as the time before."""
    message: str = ""


def read_journal(path: Path) -> list[MediaRecord]:
    """The records of a journal; a last line that was cut off is left out."""
    records = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            records.append(MediaRecord(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return records


@dataclass(frozen=True)
class Attempts:
    """Attempts at a file that came to no end."""

    number: int = 0
    alone: bool = False
    """Whether no other file was under way in one of them."""


def attempts(journal: Path) -> defaultdict[str, Attempts]:
    """Attempts at each file, by its path, that came to no end."""
    tries: defaultdict[str, Attempts] = defaultdict(Attempts)
    for record in read_journal(journal):
        before = tries[record.source]
        tries[record.source] = (
            Attempts(before.number + 1, before.alone or record.state == "alone")
            if record.state in BEGUN
            else Attempts()
        )
    return tries


class _Ended:
    """Number of files that have ended, by all journals of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[Path, int] = {}
        self._counts: dict[Path, int] = {}

    def count(self) -> int:
        """Look at the journals that have grown. A file that is done again counts once."""
        for journal in self._folder.glob(JOURNALS):
            size = journal.stat().st_size
            if size != self._sizes.get(journal):
                ended = {one.source for one in read_journal(journal) if one.state not in BEGUN}
                self._sizes[journal], self._counts[journal] = size, len(ended)
        return sum(self._counts.values())


@contextmanager
def watched(folder: Path, files: int) -> Iterator[None]:
    """Show how many files have ended, while processes of any host write journals.

    Args:
        folder: where the journals are.
        files: number of all files.
    """
    ended, stop = _Ended(folder), threading.Event()
    with tqdm(total=files, initial=ended.count(), desc="extracting", unit=" files") as bar:

        def follow() -> None:
            over = False
            while not over:
                over = stop.wait(_SECONDS_BETWEEN_LOOKS)
                bar.update(ended.count() - bar.n)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
