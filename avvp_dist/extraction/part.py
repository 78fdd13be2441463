"""Some media files as clips, with a journal of what became of each of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from avvp_dist.errors import DataError
from avvp_dist.extraction.files import MediaItem, windows
from avvp_dist.extraction.journal import MediaRecord, attempts
from avvp_dist.features.backbones.backbone import Backbone
from avvp_dist.features.backbones.registry import open_backbones
from avvp_dist.features.description import Description, describe
from avvp_dist.features.media import Bounds, MediaError, Reason
from avvp_dist.shards.schema import Clip

_TRIES = 2
"""Attempts after which a file that ended the process is left out."""


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
    journal: str
    """File of the records, one JSON object a line."""

    def files(self) -> Sequence[Path]:
        return [Path(item.path) for item in self.items]

    def __iter__(self) -> Iterator[Clip | DataError]:
        backbones = _loaded(self.backbones, self.weights)
        tries = attempts(Path(self.journal))
        for item in self.items:
            if not item.other and tries[item.path] < _TRIES:
                self._write(MediaRecord(item.id, item.path, "begun"))
            try:
                if item.other:
                    message = f"{item.path} has the same id as {item.other}"
                    raise MediaError(Reason.DUPLICATE_ID, message)
                if tries[item.path] >= _TRIES:
                    raise MediaError(Reason.CRASHED, f"{item.path} ends the process")
                made = describe(Path(item.path), item.path, backbones, self.bounds)
                clips = self._clips(item, made)
            except MediaError as error:
                yield self._failed(item, error)
                continue
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
        return [
            Clip(
                item.id if whole else f"{item.id}_{start}_{end}",
                {name: array[start:end] for name, array in made.streams.items()},
                item.labels,
                end - start,
            )
            for start, end in spans
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


@lru_cache(1)
def _loaded(names: tuple[str, ...], weights: tuple[tuple[str, str], ...]) -> list[Backbone]:
    """The backbones of a process, loaded once for all shards that it makes."""
    return open_backbones(names, dict(weights))
