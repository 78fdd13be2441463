"""Shard sets, read as memory: plain WebDataset tars beside an index of where their arrays are.

A shard set is a folder or a URL with `manifest.json`, `index.npy` and tars. A shard is *opened*
before its first clip is read: fetched if it is remote, verified against the manifest, mapped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import MANIFEST, sha256
from avvp_dist.config import ReadConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.runtime.environment import home
from avvp_dist.shards.cache import Cache
from avvp_dist.shards.exclusion import read_excluded
from avvp_dist.shards.indexing import NO_LABEL, UNKNOWN, index_tars, load_index, owners_of, tars_in
from avvp_dist.shards.layout import Layout, layout_of
from avvp_dist.shards.manifest import INDEX, parse_manifest
from avvp_dist.shards.mapping import Gather
from avvp_dist.shards.opening import OpenShards
from avvp_dist.shards.remote import is_url, read_url
from avvp_dist.shards.schema import finite
from avvp_dist.shards.verification import OnBad, check_size, raise_on_bad

Streams = dict[str, NDArray[np.floating]]
"""Features of B clips: `[B, T, D]` by stream, of the set's dtype."""


class ShardSet:
    """A shard set opened for reading; clips are numbered 0..len-1 in shard order.

    A folder of tars that others wrote becomes a shard set when it is first opened: index and
    manifest are written beside the tars. `digest` is the SHA-256 of the manifest, `content` that
    of the manifest without the list of excluded clips.

    Args:
        place: folder, or URL of fsspec.
        config: how its shards are verified, and where remote ones are kept.
        on_bad: called with the clip numbers of a local shard that is missing or not of the size
            that its manifest says, and for a tar that the manifest does not name. By default this
            is an error.

    Raises:
        DataError: if the manifest or the index is missing or damaged, or `on_bad` raises it.
    """

    def __init__(
        self, place: str | Path, config: ReadConfig | None = None, on_bad: OnBad = raise_on_bad
    ) -> None:
        self.config = config or ReadConfig()
        self.remote = is_url(str(place))
        self.name = str(place).rstrip("/") if self.remote else str(Path(place).absolute())
        # Nobody needs a home for shards on a disk.
        self._cache = _cache(self.config) if self.remote else None
        text = self._manifest_text()
        self.digest = sha256(text)
        self.manifest = parse_manifest(text, f"{self.name}/{MANIFEST}")
        self.content = self.manifest.content_digest
        self.snippets, self.dims = self.manifest.snippets, self.manifest.dims
        self.dtype = self.manifest.dtype
        self.extractor, self.shards = self.manifest.extractor, self.manifest.shards
        self.starts = np.cumsum([0] + [shard.clips for shard in self.shards])
        self.index = self._load_index()
        self.layout = layout_of(self.index, self.snippets, self.dims, self.dtype)
        self._opening = OpenShards(self.name, self.shards, self.config.verify, self._cache)
        self._gather = Gather()
        for number in range(0 if self.remote else len(self.shards)):
            try:
                check_size(self.shards[number], self._opening.path(number))
            except DataError as error:
                on_bad(self.clips_of(number), error)
        for tar in self._later_tars():
            on_bad(
                (),
                DataError(
                    f"{tar} is not in {MANIFEST} beside it: its clips would not be read",
                    remedy=f"Remove {MANIFEST} and {INDEX}, and avvp inspect makes them anew; or "
                    "move the tar away",
                ),
            )

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def folder(self) -> Path:
        """Folder of a local shard set.

        Raises:
            DataError: for a remote one.
        """
        if self.remote:
            raise DataError(f"{self.name} is no local folder", remedy="Give out= a local one")
        return Path(self.name)

    # Reading

    def gather(self, clips: NDArray[np.integer]) -> Streams:
        """Features of `clips [B]`: one `[B, T, D]` by stream, rows in the order of `clips`.

        Raises:
            DataError: for a shard or a clip that cannot be read, naming it.
        """
        return self.read(clips)[0]

    def read(
        self, clips: NDArray[np.integer], on_bad: OnBad = raise_on_bad
    ) -> tuple[Streams, NDArray[np.bool_]]:
        """Features of `clips [B]`, and which clips could be read, `[B]`; the others are zeros.

        Args:
            on_bad: called with each shard's or clip's numbers that cannot be read, and why.
        """
        buffer = self.layout.empty(len(clips))
        good = self.read_into(buffer, clips, on_bad)
        return self.layout.views(buffer), good

    def read_into(
        self,
        buffer: NDArray[np.floating],
        clips: NDArray[np.integer],
        on_bad: OnBad = raise_on_bad,
    ) -> NDArray[np.bool_]:
        """Fill a `buffer [B, layout.width]` with `clips [B]`; returns which could be read, `[B]`.

        The rows of clips that cannot be read are zeros.
        """
        part = Part(self, np.arange(len(clips)), clips, on_bad)
        return read_parts([part], self.layout, buffer, self._gather)

    @contextmanager
    def opened(self, clips: NDArray[np.integer], on_bad: OnBad) -> Iterator[NDArray[np.bool_]]:
        """Open the shards of `clips [B]`, hold them open, and yield which clips are in good ones.

        Clips that were not finite when the index was made count as bad.
        """
        owners = self.owners(clips)
        with self._opening.held(owners):  # while the loader closes what it has passed
            good = np.ones(len(clips), bool)
            for number, error in self._opening.open(owners).items():
                on_bad(self.clips_of(number), error)
                good &= owners != number
            whole = self.index["length"][clips] > 0
            for clip in clips[good & ~whole]:
                on_bad([int(clip)], DataError(f"{self.name}: clip {self.id(clip)} is not finite"))
            yield good & whole

    def addresses(self, clips: NDArray[np.integer], layout: Layout) -> NDArray[np.int64]:
        """Addresses of the runs of `layout` in the shards of `clips [B]`, `[B, runs]`."""
        owners, offsets = self.owners(clips), self.index["offsets"][clips].astype(np.int64)
        if layout.one_run:
            offsets = offsets.min(1, keepdims=True)
        size = np.dtype(layout.dtype).itemsize
        columns = [
            self._opening.addresses(owners, offsets[:, run], size * count)
            for run, (_, count) in enumerate(layout.runs())
        ]
        return np.stack(columns, 1)

    # What the index knows

    def clips_of(self, shard: int) -> range:
        """Numbers of the clips of a shard."""
        return range(int(self.starts[shard]), int(self.starts[shard + 1]))

    def owners(self, clips: NDArray[np.integer]) -> NDArray[np.integer]:
        """Shard of each of `clips [B]`."""
        return owners_of(clips, self.starts)

    def id(self, clip: int) -> str:
        """Source id of a clip."""
        return bytes(self.index["id"][clip]).decode()

    def where(self, clip: int) -> str:
        """Shard and id of a clip, for messages."""
        shard = self.shards[int(self.owners(np.array([clip]))[0])]
        return f"{self.name}/{shard.name}: clip {self.id(clip)}"

    @cached_property
    def ids(self) -> list[str]:
        """Source ids, in shard order."""
        return [name.decode() for name in self.index["id"].tolist()]

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """First 8 bytes of the SHA-256 of each clip's id, `[N]`."""
        return self.index["hash"]

    @property
    def lengths(self) -> NDArray[np.uint8]:
        """Number of real snippets of each clip, `[N]`; the rest up to T is padding."""
        return self.index["length"]

    @cached_property
    def labels(self) -> list[tuple[str, ...] | None]:
        """Weak labels of each clip, `None` where unknown."""
        classes = self.manifest.classes
        return [
            None if row[0] == UNKNOWN else tuple(classes[code] for code in row if code != NO_LABEL)
            for row in self.index["labels"].tolist()
        ]

    @cached_property
    def excluded(self) -> NDArray[np.bool_]:
        """Mask of the clips that avvp decontaminate keeps out of training, `[N]`.

        Raises:
            DataError: if the list of them is missing or damaged.
        """
        return read_excluded(self.name, self.manifest)

    @property
    def all_open(self) -> bool:
        """Whether every shard is open."""
        return self._opening.all_open

    def prepare(self, shards: Iterable[int], *, warm: bool = False) -> None:
        """Begin to open shards in the background; with `warm` also read them from the disk."""
        self._opening.prepare(shards, warm=warm)

    def release(self, shards: Iterable[int]) -> None:
        """Close shards, which frees their memory and lets the cache drop them.

        A shard that another thread reads at this moment stays open.
        """
        self._opening.release(shards)

    def close(self) -> None:
        """Stop opening shards. Open shards stay open."""
        self._opening.close()

    def _later_tars(self) -> list[Path]:
        """Tars in the folder that the manifest does not name."""
        if self.remote:
            return []
        named = {shard.name for shard in self.shards}
        return [tar for tar in tars_in(Path(self.name)) if tar.name not in named]

    def _manifest_text(self) -> bytes:
        if self.remote:
            try:
                return read_url(f"{self.name}/{MANIFEST}")
            except FileNotFoundError:
                raise DataError(
                    f"{self.name} is no shard set: {MANIFEST} is missing",
                    remedy="For tars that others wrote, make it where they lie on a disk, with "
                    "avvp inspect, and copy it with index.npy beside them",
                ) from None
        path = Path(self.name) / MANIFEST
        if not path.exists():
            index_tars(Path(self.name))
        return path.read_bytes()

    def _load_index(self) -> NDArray[np.void]:
        if self._cache is None:
            return load_index(Path(self.name) / INDEX, self.manifest)
        url, entry = f"{self.name}/{INDEX}", self.manifest.index
        path = self._cache.fetch(url, entry.bytes, entry.sha256)
        try:
            return load_index(path, self.manifest)
        except DataError:  # the copy went bad, or another process freed space in the cache
            self._cache.remove(path)
            return load_index(self._cache.fetch(url, entry.bytes, entry.sha256), self.manifest)


@dataclass(frozen=True)
class Part:
    """Clips of one shard set in a batch: their `rows [n]` and their numbers in the set, `[n]`."""

    shards: ShardSet
    rows: NDArray[np.integer]
    clips: NDArray[np.integer]
    on_bad: OnBad


def read_parts(
    parts: Sequence[Part], layout: Layout, buffer: NDArray[np.floating], gather: Gather
) -> NDArray[np.bool_]:
    """Fill a `buffer [B, layout.width]` with clips of one or several shard sets.

    All rows are gathered at once, straight from the mapped shards into their places.

    Args:
        parts: one per shard set; together they have every row once.
        layout: that of the buffer: the set's own, or `side_by_side` for any sets.

    Returns:
        Which rows could be read, `[B]`. The others are zeros.
    """
    good = np.ones(len(buffer), bool)
    addresses = np.empty((len(buffer), sum(1 for _ in layout.runs())), np.int64)
    with ExitStack() as stack:
        for part in parts:
            good[part.rows] = stack.enter_context(part.shards.opened(part.clips, part.on_bad))
            addresses[part.rows] = part.shards.addresses(part.clips, layout)
        if good.any():
            addresses[~good] = addresses[np.argmax(good)]  # rows of bad clips are wiped below
            for run, (start, count) in enumerate(layout.runs()):
                gather(addresses[:, run], buffer[:, start : start + count])
    unverified = [part for part in parts if part.shards.config.verify == "size"]
    if unverified:  # no hash vouches for the values
        streams = layout.views(buffer)
        suspect = {name: stream for name, stream in streams.items() if not finite(stream)}
        for part in unverified:
            _drop_not_finite(part, suspect, good)
    if not good.all():
        buffer[~good] = 0
    return good


def _drop_not_finite(part: Part, streams: Streams, good: NDArray[np.bool_]) -> None:
    """Report clips with values that are not finite, and mark their rows as bad in `good [B]`."""
    for name, stream in streams.items():
        for row, clip in zip(part.rows.tolist(), part.clips.tolist(), strict=True):
            if good[row] and not finite(stream[row]):
                good[row] = False
                where = part.shards.where(clip)
                part.on_bad([clip], DataError(f"{where}: {name} is not finite"))


def _cache(config: ReadConfig) -> Cache:
    """The cache of fetched shards.

    Raises:
        ConfigError: if nothing says where it is.
    """
    own = home()
    caches = os.environ.get("XDG_CACHE_HOME") or (own and own / ".cache")
    if not config.cache and not caches:
        raise ConfigError("cache: this user has no home folder", remedy="Set cache= to a folder")
    folder = Path(config.cache) if config.cache else Path(caches or "") / "avvp_dist"
    return Cache(folder, int(config.cache_gib * 2**30))
