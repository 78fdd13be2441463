"""Several shard sets as one: their clips are numbered one set after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from avvp_dist.config import LoaderConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.loading.damage import Damage
from avvp_dist.loading.order import ClipPool, Numbers
from avvp_dist.shards.layout import side_by_side
from avvp_dist.shards.shard_set import OnBad, ShardSet


class Mixture:
    """Shard sets that are read together, and the damage in them.

    Args:
        weights: how often an epoch sees the clips of each set; once by default.
        most_bad: the share of all clips that may be unreadable.

    Raises:
        DataError: if they differ in T, dims or extractor: their features are not comparable.
        ConfigError: if there is not one weight a set.
    """

    def __init__(
        self, sets: Sequence[ShardSet], weights: Sequence[float] = (), most_bad: float = 0.0
    ) -> None:
        if weights and (len(weights) != len(sets) or not all(weight >= 0 for weight in weights)):
            raise ConfigError(
                f"data.weights={list(weights)} are not one weight, 0 or more, for each of the "
                f"{len(sets)} shard sets"
            )
        self.sets, self.weights = list(sets), list(weights) or [1.0] * len(sets)
        first = self.sets[0]
        for other in self.sets[1:]:
            for what in ("extractor", "dims", "snippets"):
                if getattr(first, what) != getattr(other, what):
                    raise DataError(
                        f"{other.name} has the {what} {getattr(other, what)!r}, {first.name} "
                        f"{getattr(first, what)!r}",
                        remedy="Only features of the same backbones can be mixed",
                    )
        self.dims, self.snippets, self.extractor = first.dims, first.snippets, first.extractor
        self.name = " + ".join(part.name for part in self.sets)
        self.layout = (
            first.layout if len(self.sets) == 1 else side_by_side(first.snippets, first.dims)
        )
        self.starts = np.cumsum([0] + [len(part) for part in self.sets])
        self.damage = Damage(len(self), most_bad)

    @classmethod
    def open(cls, places: Sequence[str], weights: Sequence[float], config: LoaderConfig) -> Mixture:
        """The shard sets at `places`; missing and cut shards are noted as damage.

        Raises:
            AvvpError: for sets that cannot be read or mixed, or more damage than may be.
        """
        found: list[list[tuple[Iterable[int], DataError]]] = []
        sets = []
        for place in places:
            notes: list[tuple[Iterable[int], DataError]] = []
            sets.append(ShardSet(place, config, lambda *note, notes=notes: notes.append(note)))
            found.append(notes)
        mixture = cls(sets, weights, config.max_bad_fraction)
        for start, notes in zip(mixture.starts.tolist(), found, strict=False):
            for numbers, error in notes:
                mixture.damage((start + number for number in numbers), error)
        return mixture

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def digests(self) -> list[str]:
        """The digest of each set's manifest."""
        return [part.digest for part in self.sets]

    @property
    def lengths(self) -> NDArray[np.uint8]:
        """Real snippets of each clip, `[N]`."""
        return np.concatenate([part.lengths for part in self.sets])

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """What `ShardSet.hashes` is, of all clips."""
        return np.concatenate([part.hashes for part in self.sets])

    @cached_property
    def excluded(self) -> NDArray[np.bool_]:
        """What `ShardSet.excluded` is, of all clips."""
        return np.concatenate([part.excluded for part in self.sets])

    def owners(self, clips: Numbers) -> Numbers:
        """Index of the shard set of each of `clips [B]`."""
        return np.searchsorted(self.starts, clips, side="right") - 1

    def id(self, clip: int) -> str:
        """Source id of a clip."""
        owner = int(np.searchsorted(self.starts, clip, side="right")) - 1
        return self.sets[owner].id(clip - int(self.starts[owner]))

    def pools(self, chosen: NDArray[np.bool_] | None = None) -> list[ClipPool]:
        """The clips of each set for the order: all, or the `chosen [N]`, but for excluded ones."""
        pools = []
        taken = ~self.excluded if chosen is None else chosen & ~self.excluded
        for part, start, weight in zip(self.sets, self.starts, self.weights, strict=False):
            mine = slice(int(start), int(start) + len(part))
            clips = np.flatnonzero(taken[mine])
            pools.append(ClipPool(clips + start, part.owners(clips), weight))
        return pools

    def shards_of(self, clips: Numbers) -> list[Numbers]:
        """For each set, the shards that hold some of `clips`."""
        return [part.owners(local) for part, _, local in self._shares(clips)]

    def read(
        self,
        clips: Numbers,
        room: NDArray[np.float16] | None = None,
    ) -> tuple[dict[str, NDArray[np.float16]], NDArray[np.bool_]]:
        """As `ShardSet.read`; what cannot be read is noted in `damage`."""
        if len(self.sets) == 1:
            return self.sets[0].read(clips, self.damage, room)
        if room is None:
            room = np.empty((len(clips), self.layout.width), np.float16)
        out = self.layout.views(room)
        good = np.ones(len(clips), bool)
        for number, (part, rows, local) in enumerate(self._shares(clips)):
            if len(rows):
                arrays, good[rows] = part.read(local, self._shifted(int(self.starts[number])))
                for name, array in arrays.items():
                    out[name][rows] = array
        return out, good

    def _shares(self, clips: Numbers) -> list[tuple[ShardSet, Numbers, Numbers]]:
        """Each set, the rows of `clips` that are its own, and their numbers in it."""
        owners = np.searchsorted(self.starts, clips, side="right") - 1
        shares: list[tuple[ShardSet, Numbers, Numbers]] = []
        for number, part in enumerate(self.sets):
            rows = np.flatnonzero(owners == number)
            shares.append((part, rows, clips[rows] - self.starts[number]))
        return shares

    def _shifted(self, start: int) -> OnBad:
        def note(numbers: Iterable[int], error: DataError) -> None:
            self.damage((number + start for number in numbers), error)

        return note
