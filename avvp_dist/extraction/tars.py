"""Samples of WebDataset tars, found by their members' headers alone.

A sample is a video, a sound, or one of each, and maybe a JSON object, all of one key. The key is
the member's whole name without its ending, so that dots and folders stay part of it. Media are
read later, by offset and size.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import IO

from tqdm import tqdm

from avvp_dist.commit import digest
from avvp_dist.errors import AvvpError, DataError
from avvp_dist.extraction.files import SOUND, VIDEO, MediaItem
from avvp_dist.extraction.places import Place
from avvp_dist.features.media import Reason
from avvp_dist.json_values import parse_value
from avvp_dist.ledger import Ledger
from avvp_dist.packing.shard_tasks import stat_of
from avvp_dist.packing.sources import Labels, SourceFile
from avvp_dist.runtime.cluster.tasks import map_tasks
from avvp_dist.shards.remote import RemoteFile, open_url
from avvp_dist.shards.schema import decode_key, encode_key
from avvp_dist.shards.tars import check_end, is_of_a_file_manager

_JSON = ".json"
_MAXIMUM_JSON = 1 << 20
_SHOWN = 3
_FEW = 64
"""Tars on a disk that are indexed before Ray would have started."""


@dataclass(frozen=True)
class SampleJson:
    """Entries of a sample's JSON object that are of use here; None for what is unknown."""

    id: str | None = None
    labels: Labels = None
    span: tuple[float, float] | None = None
    """Its `start` and `end` in seconds, where they are times."""

    @classmethod
    def parse(cls, text: bytes) -> SampleJson:
        """Id, labels and times of a JSON object; all other entries are ignored.

        Labels are the list `labels`, or else `tag`, as in LAION's audio sets: a list, or names with
        semicolons or commas between them. An empty `tag` says nothing.

        Raises:
            ValueError: if it is no JSON object, or id or labels are of another type.
        """
        entries = json.loads(text)
        if not isinstance(entries, dict):
            raise ValueError("it is no JSON object")
        name = entries.get("id")
        if not (name is None or type(name) in (str, int)) or "\0" in str(name):
            raise ValueError("its id is no text")
        labels, tag = entries.get("labels"), entries.get("tag")
        if labels is None and tag:
            labels = _names(tag) if isinstance(tag, str) else tag
        if not (labels is None or (type(labels) is list and all(type(x) is str for x in labels))):
            raise ValueError("its labels are no list of names")
        return cls(
            None if name in (None, "") else str(name),
            None if labels is None else tuple(labels),
            _span(entries.get("start"), entries.get("end")),
        )


def _names(text: str) -> list[str]:
    names = text.split(";" if ";" in text else ",")
    return [name.strip() for name in names if name.strip()]


def _span(start: object, end: object) -> tuple[float, float] | None:
    times = [one for one in (start, end) if type(one) in (int, float)]
    match times:
        case [int() | float() as first, int() | float() as last] if 0 <= first < last < inf:
            return float(first), float(last)
    return None


@dataclass
class _Sample:
    """Members of one key, wherever they lie in the tar."""

    videos: list[tarfile.TarInfo] = field(default_factory=list)
    sounds: list[tarfile.TarInfo] = field(default_factory=list)
    meta: SampleJson | None = None
    faults: list[tuple[Reason, str]] = field(default_factory=list)


def samples_of(
    tars: Sequence[SourceFile], ledger: Ledger, workers: int
) -> dict[SourceFile, tuple[MediaItem, ...]]:
    """Samples of each tar. Those of tars that `ledger` has, as they are now, are not looked for.

    Args:
        workers: tars that are read at once, on Ray; 0: one per CPU. Few on a disk need none.

    Raises:
        DataError: naming the tars that are damaged or cannot be read.
    """
    keys = {tar: digest([str(tar), stat_of(tar)]) for tar in tars}
    known = {tar: ledger.finished(keys[tar][:16], keys[tar]) for tar in tars}
    found = {tar: parse_value(_Indexed, record).items for tar, record in known.items() if record}
    missing = [tar for tar in tars if tar not in found]
    calls = [(number, tar) for number, tar in enumerate(missing)]
    if len(calls) <= _FEW and all(isinstance(tar, Path) for tar in missing):
        workers = 1
    faults: list[AvvpError] = []
    with tqdm(total=len(calls), desc="indexing", unit=" tars", disable=not calls) as bar:
        for one in map_tasks(_index, calls, workers, "an index task", keep_going=True):
            bar.update()
            if isinstance(one, AvvpError):
                faults.append(one)
                continue
            number, items = one
            tar = missing[number]
            found[tar] = tuple(items)
            ledger.finish(keys[tar][:16], keys[tar], items=[asdict(item) for item in items])
    if len(faults) == 1:
        raise faults[0]
    if faults:
        first = "; ".join(map(str, faults[:_SHOWN]))
        raise DataError(f"{len(faults)} of {len(tars)} tars cannot be used: {first}")
    return found


@dataclass(frozen=True)
class _Indexed:
    """Record of a tar in the ledger."""

    items: tuple[MediaItem, ...]


def _index(number: int, tar: SourceFile) -> tuple[int, list[MediaItem]]:
    return number, index_tar(tar)


def index_tar(tar: SourceFile) -> list[MediaItem]:
    """Samples of a tar in the order in which their keys first appear.

    A sample that cannot be used has a `fault`.

    Raises:
        DataError: naming the tar, if it is cut off or damaged.
        StorageError: if its server cannot be read.
    """
    samples: dict[str, _Sample] = {}
    try:
        with _opened(tar) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if member.offset_data + member.size > size:
                        raise ValueError(f"{member.name} goes on after the end: it is cut off")
                    if not (member.isdir() or is_of_a_file_manager(member.name)):
                        _add(archive, member, samples)
                check_end(file, str(tar), archive.offset)
    except OSError as error:
        raise DataError(f"{tar} cannot be read: {error.strerror or error}") from None
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise DataError(
            f"{tar} is damaged: {error}", remedy="Copy it again, or leave it out of source="
        ) from None
    held = ((key, one) for key, one in samples.items() if one.videos or one.sounds)
    return [_item(tar, key, sample) for key, sample in held]


def _opened(tar: SourceFile) -> IO[bytes]:
    if isinstance(tar, Path):
        return tar.open("rb")
    if tar.bytes is None:
        raise DataError(f"{tar}: its server does not say how long it is", remedy="Copy it")
    return open_url(tar)


def _add(archive: tarfile.TarFile, member: tarfile.TarInfo, samples: dict[str, _Sample]) -> None:
    """Add a member to its sample; members of other endings are ignored."""
    name = member.name.removeprefix("./")
    ending = Path(name).suffix.lower()
    if ending not in (*VIDEO, *SOUND, _JSON):
        return
    sample = samples.setdefault(name[: -len(ending)], _Sample())
    if ending != _JSON:
        (sample.videos if ending in VIDEO else sample.sounds).append(member)
        if not member.isreg() or member.issparse():
            sample.faults.append((Reason.UNSUPPORTED, f"{name} is no plain file but a link"))
        return
    try:
        if sample.meta is not None:
            raise ValueError("there is another one")
        sample.meta = SampleJson()
        file = archive.extractfile(member) if member.size <= _MAXIMUM_JSON else None
        if file is None:
            raise ValueError("it is a link, or too large")
        sample.meta = SampleJson.parse(file.read())
    except (ValueError, RecursionError, KeyError) as error:
        sample.faults.append((Reason.UNREADABLE, f"{name} is of no use: {error}"))


def _item(tar: SourceFile, key: str, sample: _Sample) -> MediaItem:
    media = [*sample.videos, *sample.sounds]
    name = f"{tar}#{'+'.join(one.name.removeprefix('./') for one in media)}"
    meta, faults = sample.meta or SampleJson(), list(sample.faults)
    if len(sample.videos) > 1 or len(sample.sounds) > 1:
        kind = "videos" if len(sample.videos) > 1 else "sounds"
        faults.append((Reason.UNSUPPORTED, f"it is one sample with several {kind}"))
    clip = meta.id or _decoded(key)
    if clip != (safe := clip.encode(errors="backslashreplace").decode()):
        faults.append((Reason.UNSUPPORTED, "its id is no UTF-8"))
    version = tar.version if isinstance(tar, RemoteFile) else ""
    return MediaItem(
        safe,
        name.encode(errors="backslashreplace").decode(),
        meta.labels,
        places=tuple(Place(str(tar), one.offset_data, one.size, version) for one in media),
        span=meta.span,
        fault=(faults[0][0].value, faults[0][1]) if faults else None,
    )


def _decoded(key: str) -> str:
    """The clip's id, if `encode_key` may have made the key of it; else the key."""
    with suppress(ValueError):
        if encode_key(decode_key(key)) == key:
            return decode_key(key)
    return key
