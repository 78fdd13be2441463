"""Some media files as clips, with a journal of what became of each of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

from avvp_dist.errors import DataError
from avvp_dist.extraction.files import MediaItem, windows
from avvp_dist.extraction.journal import Attempts, MediaRecord, attempts
from avvp_dist.features.backbones.backbone import Backbone
from avvp_dist.features.backbones.registry import open_backbones
from avvp_dist.features.description import Decoding, Description, described
from avvp_dist.features.media import Bounds, MediaError, MediaFile, Reason
from avvp_dist.shards.remote import is_url
from avvp_dist.shards.schema import Clip, tar_key

_TRIES = 2
"""Ends of the process after which a file is left out, if it was alone in one of them. Of several
files that were under way nobody knows which it was, so that each is tried alone."""


@dataclass(frozen=True)
class MediaPart:
    """The files of one shard, and how they are cut and described."""

    items: tuple[MediaItem, ...]
    backbones: tuple[str, ...]
    weights: tuple[tuple[str, str], ...]
    window: int
    long: str
    missing: str
    bounds: Bounds
    threads: int
    """Files that are decoded ahead of the backbones; 0: each is decoded and described alone."""
    batch: int
    """Seconds that are described together."""
    journal: str
    """File of the records, one JSON object a line."""

    def files(self) -> Sequence[Path]:
        places = (place for item in self.items for place in item.opened_places)
        # Files at URLs are told apart by the versions that their places hold.
        return [Path(one) for one in sorted({x.address for x in places if not is_url(x.address)})]

    def __iter__(self) -> Iterator[Clip | DataError]:
        backbones = _loaded(self.backbones, self.weights)
        tries = attempts(Path(self.journal))
        for items in self._together(tries):
            decodings = [
                Decoding(
                    partial(self._begin, item, tries[item.path], len(items) == 1),
                    item.path,
                    backbones,
                    self.bounds,
                    item.span,
                )
                for item in items
            ]
            made = described(decodings, backbones, threads=self.threads, batch=self.batch)
            with _one_thread(), self._not_charged(items, tries):
                for item, one in zip(items, made, strict=True):
                    yield from self._outcome(item, one)

    def _together(self, tries: Mapping[str, Attempts]) -> Iterator[list[MediaItem]]:
        """Files that are under way together: one, or all up to one that ended the process twice."""
        together: list[MediaItem] = []
        for item in self.items:
            if self.threads and tries[item.path].number < _TRIES:
                together.append(item)
                continue
            yield from filter(None, (together, [item]))
            together = []
        yield from filter(None, [together])

    @contextmanager
    def _not_charged(
        self, items: Sequence[MediaItem], tries: Mapping[str, Attempts]
    ) -> Iterator[None]:
        """Take an error that ends the task, such as a server's, as no attempt at the files."""
        try:
            yield
        except Exception:  # it is raised again; only the end of the process is held against files
            now = attempts(Path(self.journal))
            for item in items:
                if now[item.path].number > tries[item.path].number:
                    self._write(MediaRecord(item.id, item.path, "unread"))
            raise

    def _begin(self, item: MediaItem, tried: Attempts, alone: bool) -> MediaFile:
        """The file, as its decoding begins.

        Raises:
            MediaError: if it is not to be decoded.
        """
        if item.other:
            raise MediaError(Reason.DUPLICATE_ID, f"{item.path} has the same id as {item.other}")
        if tried.number >= _TRIES and tried.alone:
            raise MediaError(Reason.CRASHED, f"{item.path} ends the process")
        self._write(MediaRecord(item.id, item.path, "alone" if alone else "begun"))
        return item.open(self.bounds)

    def _outcome(
        self, item: MediaItem, made: Description | MediaError
    ) -> Iterator[Clip | DataError]:
        try:
            if isinstance(made, MediaError):
                raise made
            clips = self._clips(item, made)
        except MediaError as error:
            yield self._failed(item, error)
            return
        self._write(_record(item, made, len(clips)))
        yield from clips

    def _clips(self, item: MediaItem, made: Description) -> list[Clip]:
        if made.empty and self.missing == "skip":
            reason = Reason.NO_SOUND if "audio" in made.empty else Reason.NO_PICTURE
            raise MediaError(reason, f"{item.path} has nothing for the stream {made.empty[0]}")
        if made.seconds > self.window and self.long == "error":
            raise MediaError(
                Reason.TOO_LONG, f"{item.path} lasts {made.seconds} s, over {self.window}"
            )
        spans = windows(made.seconds, self.window, self.long)
        whole = len(spans) == 1 and spans[0] == (0, made.seconds)
        names = [item.id if whole else f"{item.id}_{start}_{end}" for start, end in spans]
        for name in names:
            if name in item.taken:
                raise MediaError(
                    Reason.DUPLICATE_ID, f"{item.path}: its window {name} has the id of a file"
                )
            try:
                tar_key(name, made.streams)
            except DataError as error:  # it would end the writing of the whole shard
                raise MediaError(Reason.UNSUPPORTED, str(error)) from None
        return [
            Clip(
                name,
                {stream: array[start:end] for stream, array in made.streams.items()},
                item.labels,
                end - start,
            )
            for name, (start, end) in zip(names, spans, strict=True)
        ]

    def _failed(self, item: MediaItem, error: MediaError) -> DataError:
        self._write(
            MediaRecord(item.id, item.path, "failed", error.reason.value, message=str(error))
        )
        return DataError(f"clip {item.id}: {error}")

    def _write(self, record: MediaRecord) -> None:
        with Path(self.journal).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")


def _record(item: MediaItem, made: Description, clips: int) -> MediaRecord:
    return MediaRecord(
        item.id,
        item.path,
        "done",
        seconds=made.seconds,
        clips=clips,
        frames=made.counts.frames,
        packet_errors=made.counts.packet_errors,
        decode_seconds=round(made.decode_seconds, 4),
        compute_seconds=round(made.compute_seconds, 4),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread of torch, so that features are the same on any number of cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(1)
def _loaded(names: tuple[str, ...], weights: tuple[tuple[str, str], ...]) -> list[Backbone]:
    """The backbones of a process, loaded once for all shards that it makes."""
    return open_backbones(names, dict(weights))
