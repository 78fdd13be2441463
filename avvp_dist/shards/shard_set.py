"""Shard sets, read as memory: plain WebDataset tars beside an index of where their arrays are.

A shard set is a folder or a URL with `manifest.json`, `index.npy` and tars. A shard is *opened*
before its first clip is read: fetched if it is remote, verified against the manifest, mapped.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.commit import MANIFEST
from avvp_dist.config import ReadConfig
from avvp_dist.errors import DataError, StorageError
from avvp_dist.loading.damage import raise_on_bad
from avvp_dist.shards.cache import Cache
from avvp_dist.shards.exclusion import content_digest, read_excluded
from avvp_dist.shards.indexing import index_tars
from avvp_dist.shards.layout import layout_of
from avvp_dist.shards.manifest import INDEX, NO_LABEL, UNKNOWN, load_index, parse_manifest
from avvp_dist.shards.mapping import Mapping
from avvp_dist.shards.opening import OpenerThreads
from avvp_dist.shards.remote import is_url, read_url
from avvp_dist.shards.schema import finite
from avvp_dist.shards.verification import REMEDY, Shard, check_size, verify

OnBad = Callable[[Iterable[int], DataError], None]
"""Is told which clips cannot be read and why; it may raise."""

_OPENERS = 8


class ShardSet:
    """A shard set opened for reading; clips are numbered 0..len-1 in shard order.

    A folder of tars that somebody else wrote becomes one at first sight: its index and manifest
    are made beside the tars. `digest` is of the whole manifest, `content` of all but the list of
    excluded clips.

    Args:
        place: folder, or URL of fsspec.
        reading: how its shards are verified, and where remote ones are kept.
        on_bad: is told of local shards that are missing or have another size than their manifest
            says, by the numbers of their clips; without it they are an error.

    Raises:
        DataError: if the manifest or the index is missing or damaged, or `on_bad` says so.
    """

    def __init__(
        self, place: str | Path, reading: ReadConfig | None = None, on_bad: OnBad = raise_on_bad
    ) -> None:
        self.reading = reading or ReadConfig()
        self.remote = is_url(str(place))
        self.name = str(place).rstrip("/") if self.remote else str(Path(place).absolute())
        self._cache = _cache(self.reading)
        text = self._manifest_text()
        self.digest = hashlib.sha256(text).hexdigest()
        self.manifest = parse_manifest(text, f"{self.name}/{MANIFEST}")
        self.content = content_digest(self.manifest)
        self.snippets: int = self.manifest["snippets"]
        self.dims = {name: spec["dim"] for name, spec in self.manifest["streams"].items()}
        self.extractor: str = self.manifest["extractor"]
        self.shards = [Shard(**entry) for entry in self.manifest["shards"]]
        self.starts = np.cumsum([0] + [shard.clips for shard in self.shards])
        self.index = self._load_index()
        self.layout = layout_of(self.index, self.snippets, self.dims)
        self._mapping = Mapping([shard.bytes for shard in self.shards])
        self._opening: dict[int, Future[None]] = {}
        self._open = np.zeros(len(self.shards), bool)
        self._readers = np.zeros(len(self.shards), np.int64)
        self._verified: set[int] = set()
        self._lock = threading.Lock()
        self._openers: OpenerThreads | None = None
        for number in range(0 if self.remote else len(self.shards)):
            try:
                check_size(self.shards[number], self._path(number))
            except DataError as error:
                on_bad(self.clips_of(number), error)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def folder(self) -> Path:
        """Where a local shard set lies.

        Raises:
            DataError: for a remote one.
        """
        if self.remote:
            raise DataError(f"{self.name} is no local folder", remedy="Give out= a local one")
        return Path(self.name)

    def clips_of(self, shard: int) -> range:
        """Numbers of the clips of a shard."""
        return range(int(self.starts[shard]), int(self.starts[shard + 1]))

    def owners(self, clips: NDArray[np.integer]) -> NDArray[np.integer]:
        """The shard of each of `clips [B]`."""
        return np.searchsorted(self.starts, clips, side="right") - 1

    def gather(self, clips: NDArray[np.integer]) -> dict[str, NDArray[np.float16]]:
        """The features of `clips [B]`: one float16 `[B, T, D]` per stream, in that order.

        Raises:
            DataError: for a shard or a clip that cannot be read, naming it.
        """
        return self.read(clips)[0]

    def read(
        self,
        clips: NDArray[np.integer],
        on_bad: OnBad = raise_on_bad,
        room: NDArray[np.float16] | None = None,
    ) -> tuple[dict[str, NDArray[np.float16]], NDArray[np.bool_]]:
        """As `gather`, and which of the clips could be read, `[B]`; the others are zeros.

        Args:
            on_bad: is told of each shard and each clip that cannot be read, and why.
            room: float16 `[B, layout.width]` to read into; the arrays are views of it.
        """
        if room is None:
            room = np.empty((len(clips), self.layout.width), np.float16)
        owners = self.owners(clips)
        with self._lock:  # until they are copied nobody may unmap them: validation reads, too
            np.add.at(self._readers, owners, 1)
        try:
            good = self._open_owners(clips, on_bad)
            good &= self._whole(clips, good, on_bad)
            if good.any():
                self._gather_into(room, clips, good)
        finally:
            with self._lock:
                np.subtract.at(self._readers, owners, 1)
        arrays = self.layout.views(room)
        if self.reading.verify == "size":  # no hash vouches for them
            good &= self._finite(clips, arrays, good, on_bad)
        if not good.all():
            room[~good] = 0
        return arrays, good

    def _gather_into(
        self, room: NDArray[np.float16], clips: NDArray[np.integer], good: NDArray[np.bool_]
    ) -> None:
        starts = self._mapping.starts[self.owners(clips)]
        offsets = self.index["offsets"][clips].astype(np.int64) + starts[:, None]
        # Where nothing may be read, something else is, and wiped again.
        offsets[~good] = offsets[np.argmax(good)]
        if self.layout.one_run:
            self._mapping.gather(offsets.min(1), self.layout.width, room)
            return
        for column, (name, dim) in enumerate(self.dims.items()):
            count, start = self.snippets * dim, self.layout.starts[name]
            room[:, start : start + count] = self._mapping.gather(offsets[:, column], count)

    def id(self, clip: int) -> str:
        """Source id of a clip."""
        return bytes(self.index["id"][clip]).decode()

    @cached_property
    def ids(self) -> list[str]:
        """Source ids, in shard order."""
        return [name.decode() for name in self.index["id"].tolist()]

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """The first 8 bytes of the SHA-256 of each clip's id, `[N]`."""
        return self.index["hash"]

    @property
    def lengths(self) -> NDArray[np.uint8]:
        """Real snippets of each clip, `[N]`; the rest up to T is padding."""
        return self.index["length"]

    @cached_property
    def labels(self) -> list[tuple[str, ...] | None]:
        """Weak labels of each clip, `None` where unknown."""
        classes = self.manifest["classes"]
        return [
            None if row[0] == UNKNOWN else tuple(classes[code] for code in row if code != NO_LABEL)
            for row in self.index["labels"].tolist()
        ]

    @cached_property
    def excluded(self) -> NDArray[np.bool_]:
        """Clips that tools/decontaminate.py keeps out of training, `[N]`.

        Raises:
            DataError: if the list of them is missing or damaged.
        """
        return read_excluded(self.name, self.manifest)

    # Opening

    @property
    def all_open(self) -> bool:
        """Whether every shard is open."""
        return bool(self._open.all())

    def prepare(self, shards: Iterable[int], *, warm: bool = False) -> None:
        """Begin to open shards in the background; `warm`: and to read them from the disk."""
        for number in shards:
            future = self._future(int(number))
            openers = self._openers
            if warm and openers is not None:
                openers.submit(self._warm, int(number), future)

    def release(self, shards: Iterable[int]) -> None:
        """Close shards: their addresses and their places on the disk become free.

        One that another thread reads just now stays open.
        """
        with self._lock:
            for number in map(int, shards):
                if self._readers[number]:
                    continue
                if number in self._opening and self._opening[number].done():
                    self._opening.pop(number)
                    self._open[number] = False
                    self._mapping.unmap(number)

    def close(self) -> None:
        """Stop opening shards; what is open stays so."""
        with self._lock:
            if self._openers is not None:
                self._openers.close()
                self._openers = None
            for number in [n for n, future in self._opening.items() if future.cancelled()]:
                self._opening.pop(number)

    def _future(self, number: int) -> Future[None]:
        with self._lock:
            if number not in self._opening:
                if self._openers is None:
                    self._openers = OpenerThreads(min(_OPENERS, (os.cpu_count() or 1) + 2))
                    weakref.finalize(self, self._openers.close).atexit = False
                self._opening[number] = self._openers.submit(self._open_shard, number)
            return self._opening[number]

    def _open_shard(self, number: int) -> None:
        shard = self.shards[number]
        for last in (False, True):
            path = self._fetched(number)
            try:
                check_size(shard, path)  # a map of a cut file would end the process
                if number not in self._verified:
                    verify(shard, path, self.reading.verify)
                self._mapping.map(number, path)
                self._verified.add(number)
                self._open[number] = True
                return
            except FileNotFoundError:  # another process made room in the cache just now
                if last:
                    raise DataError(f"shard {path} is missing", remedy=REMEDY) from None
            except StorageError:
                raise
            except DataError:
                if not self.remote or last:
                    raise
                self._cache.remove(path)  # the copy went bad, not the shard
            except OSError as error:
                if error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE):
                    raise StorageError(f"shard {path} cannot be opened: {error}") from None
                raise DataError(f"shard {path} cannot be read: {error}", remedy=REMEDY) from None

    def _fetched(self, number: int) -> Path:
        if not self.remote:
            return self._path(number)
        shard = self.shards[number]
        return self._cache.fetch(f"{self.name}/{shard.name}", shard.bytes, shard.sha256)

    def _warm(self, number: int, opened: Future[None]) -> None:
        if opened.exception() is not None:
            return
        try:
            self._mapping.populate(number)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                return  # it was closed meanwhile, or memory is short: the clips are read when met
            path = self._path(number) if not self.remote else self.shards[number].name
            failed: Future[None] = Future()
            failed.set_exception(DataError(f"shard {path} cannot be read: {error}", remedy=REMEDY))
            with self._lock:
                if self._opening.get(number) is opened:  # else it was closed meanwhile
                    self._opening[number] = failed
                    self._open[number] = False

    def _open_owners(self, clips: NDArray[np.integer], on_bad: OnBad) -> NDArray[np.bool_]:
        """Open the shards of `clips`; which of the clips lie in good ones."""
        owners = self.owners(clips)
        good: NDArray[np.bool_] = self._open[owners]
        if good.all():
            return good
        good[:] = True
        needed = np.unique(owners)
        for number in needed:
            self._future(int(number))
        for number in needed:
            error = self._future(int(number)).exception()
            if isinstance(error, DataError) and not isinstance(error, StorageError):
                on_bad(self.clips_of(int(number)), error)
                good &= owners != number
            elif error is not None:
                raise error
        return good

    def _whole(
        self, clips: NDArray[np.integer], good: NDArray[np.bool_], on_bad: OnBad
    ) -> NDArray[np.bool_]:
        """Which clips were finite when the index was made."""
        whole = self.index["length"][clips] > 0
        for clip in clips[good & ~whole]:
            on_bad([int(clip)], DataError(f"{self.name}: clip {self.id(clip)} is not finite"))
        return whole

    def _finite(
        self,
        clips: NDArray[np.integer],
        arrays: dict[str, NDArray[np.float16]],
        good: NDArray[np.bool_],
        on_bad: OnBad,
    ) -> NDArray[np.bool_]:
        fine = np.ones(len(clips), bool)
        for name, array in arrays.items():
            if finite(array):
                continue
            for row in np.flatnonzero(good & fine):
                if not finite(array[row]):
                    fine[row] = False
                    shard = self.shards[int(self.owners(clips[row : row + 1])[0])]
                    where = f"{self.name}/{shard.name}: clip {self.id(clips[row])}"
                    on_bad([int(clips[row])], DataError(f"{where}: {name} is not finite"))
        return fine

    # The manifest and the index

    def _path(self, number: int) -> Path:
        return Path(self.name) / self.shards[number].name

    def _manifest_text(self) -> bytes:
        if self.remote:
            try:
                return read_url(f"{self.name}/{MANIFEST}")
            except FileNotFoundError:
                raise DataError(
                    f"{self.name} is no shard set: {MANIFEST} is missing",
                    remedy="For tars that others wrote, make it where they lie on a disk, with "
                    "tools/inspect_shards.py, and copy it with index.npy beside them",
                ) from None
        path = Path(self.name) / MANIFEST
        if not path.exists():
            index_tars(Path(self.name))
        return path.read_bytes()

    def _load_index(self) -> NDArray[np.void]:
        entry = self.manifest["index"]
        if not self.remote:
            return load_index(Path(self.name) / INDEX, self.manifest)
        url = f"{self.name}/{INDEX}"
        path = self._cache.fetch(url, entry["bytes"], entry["sha256"])
        try:
            return load_index(path, self.manifest)
        except DataError:  # the copy went bad, or another process made room
            self._cache.remove(path)
            return load_index(
                self._cache.fetch(url, entry["bytes"], entry["sha256"]), self.manifest
            )


def _cache(reading: ReadConfig) -> Cache:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(reading.cache) if reading.cache else Path(home) / "avvp_dist"
    return Cache(folder, int(reading.cache_gib * 2**30))
