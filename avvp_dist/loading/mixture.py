"""Several shard sets as one data set; their clips are numbered one set after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from avvp_dist.config import LoaderConfig
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.loading.damage import Damage
from avvp_dist.loading.order import ClipPool, Numbers
from avvp_dist.shards.indexing import owners_of
from avvp_dist.shards.layout import side_by_side
from avvp_dist.shards.mapping import Gather
from avvp_dist.shards.shard_set import Part, ShardSet, read_parts
from avvp_dist.shards.verification import OnBad


class Mixture:
    """Shard sets that are read together, and the damage in them.

    Args:
        sets: shard sets of the same backbones.
        weights: number of times that an epoch takes the clips of each set; by default once.
        max_bad_fraction: fraction of all clips that may be unreadable.

    Raises:
        DataError: if the sets differ in T, dims, dtype or extractor.
        ConfigError: if there is not one weight per set.
    """

    def __init__(
        self,
        sets: Sequence[ShardSet],
        weights: Sequence[float] = (),
        max_bad_fraction: float = 0.0,
    ) -> None:
        if weights and (len(weights) != len(sets) or not all(weight >= 0 for weight in weights)):
            raise ConfigError(
                f"data.weights={list(weights)} are not one weight, 0 or more, for each of the "
                f"{len(sets)} shard sets"
            )
        self.sets, self.weights = list(sets), list(weights) or [1.0] * len(sets)
        first = self.sets[0]
        for other in self.sets[1:]:
            for what in ("extractor", "dims", "snippets", "dtype"):
                if getattr(first, what) != getattr(other, what):
                    raise DataError(
                        f"{other.name} has the {what} {getattr(other, what)!r}, {first.name} "
                        f"{getattr(first, what)!r}",
                        remedy="Only features of the same backbones, packed alike, can be mixed",
                    )
        self.dims, self.snippets, self.extractor = first.dims, first.snippets, first.extractor
        self.name = " + ".join(part.name for part in self.sets)
        self.layout = (
            first.layout
            if len(self.sets) == 1
            else side_by_side(first.snippets, first.dims, first.dtype)
        )
        self.starts = np.cumsum([0] + [len(part) for part in self.sets])
        self.damage = Damage(len(self), max_bad_fraction)
        self._gather = Gather()

    @classmethod
    def open(cls, places: Sequence[str], weights: Sequence[float], config: LoaderConfig) -> Mixture:
        """Open the shard sets at `places`. Missing and cut shards are recorded as damage.

        Raises:
            AvvpError: for sets that cannot be read or mixed, or more damage than
                `config.max_bad_fraction` allows.
        """
        bad: list[list[tuple[Iterable[int], DataError]]] = [[] for _ in places]
        sets = [
            ShardSet(place, config, lambda *one, notes=notes: notes.append(one))
            for place, notes in zip(places, bad, strict=True)
        ]
        mixture = cls(sets, weights, config.max_bad_fraction)
        for start, notes in zip(mixture.starts.tolist(), bad, strict=False):
            for numbers, error in notes:
                mixture.damage((start + number for number in numbers), error)
        return mixture

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each set's manifest."""
        return [part.digest for part in self.sets]

    @property
    def lengths(self) -> NDArray[np.uint8]:
        """Number of real snippets of each clip, `[N]`."""
        return np.concatenate([part.lengths for part in self.sets])

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """First 8 bytes of the SHA-256 of each clip's id, `[N]`."""
        return np.concatenate([part.hashes for part in self.sets])

    @cached_property
    def excluded(self) -> NDArray[np.bool_]:
        """Mask of the clips that avvp decontaminate keeps out of training, `[N]`."""
        return np.concatenate([part.excluded for part in self.sets])

    def owners(self, clips: Numbers) -> Numbers:
        """Number of the shard set of each of `clips [B]`."""
        return owners_of(clips, self.starts)

    def id(self, clip: int) -> str:
        """Source id of a clip."""
        owner = int(self.owners(np.array([clip]))[0])
        return self.sets[owner].id(clip - int(self.starts[owner]))

    def pools(self, chosen: NDArray[np.bool_] | None = None) -> list[ClipPool]:
        """Clips of each set for the order: all or those `chosen [N]`, without excluded ones."""
        pools = []
        taken = ~self.excluded if chosen is None else chosen & ~self.excluded
        for part, start, weight in zip(self.sets, self.starts, self.weights, strict=False):
            mine = slice(int(start), int(start) + len(part))
            clips = np.flatnonzero(taken[mine])
            pools.append(ClipPool(clips + start, part.owners(clips), weight))
        return pools

    def shards_of(self, clips: Numbers) -> list[Numbers]:
        """Per set, the shard of each of its clips among `clips`."""
        return [part.shards.owners(part.clips) for part in self._split(clips)]

    def read_into(self, buffer: NDArray[np.floating], clips: Numbers) -> NDArray[np.bool_]:
        """Fill a `buffer [B, layout.width]` with `clips [B]`; returns which could be read, `[B]`.

        The rows of clips that cannot be read are zeros, and the clips are recorded in `damage`.

        Raises:
            DataError: for more damage than is allowed.
        """
        if len(self.sets) == 1:
            return self.sets[0].read_into(buffer, clips, self.damage)
        parts = [part for part in self._split(clips) if len(part.rows)]
        return read_parts(parts, self.layout, buffer, self._gather)

    def _split(self, clips: Numbers) -> list[Part]:
        """Per set, the rows and the numbers of its clips among `clips`."""
        owners = self.owners(clips)
        parts = []
        for number, shards in enumerate(self.sets):
            rows, start = np.flatnonzero(owners == number), int(self.starts[number])
            parts.append(Part(shards, rows, clips[rows] - start, self._on_bad(start)))
        return parts

    def _on_bad(self, start: int) -> OnBad:
        """Callback that records the clips of the set that begins at clip `start`."""

        def record(numbers: Iterable[int], error: DataError) -> None:
            self.damage((number + start for number in numbers), error)

        return record
