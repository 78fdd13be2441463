"""What is found of each clip of a shard set: whether it goes, why, and what it matches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from avvp_dist.annotations.video_ids import HeldOutVideos, videos
from avvp_dist.errors import DataError
from avvp_dist.shards.exclusion import Exclusion
from avvp_dist.shards.manifest import REASONS
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.similarity import duplicates
from avvp_dist.similarity.duplicates import Cosines, Rows
from avvp_dist.similarity.embeddings import Embedded

_CLIPS_AT_ONCE = 4096
_ID, _EMBEDDING, _DUPLICATE = range(1, 1 + len(REASONS))


class Verdict:
    """What is found of each clip of `shards`.

    `reason` int8 `[N]` is 0 for clips that stay. `source` int16 and `match` int64 say which row of
    which list or set a clip matches, `similarity` float32 `[N, streams]` how well, NaN where a
    stream was not compared.
    """

    def __init__(
        self, shards: ShardSet, lists: list[HeldOutVideos], sets: list[ShardSet], limit: float
    ) -> None:
        self.shards, self.lists, self.sets, self.limit = shards, lists, sets, limit
        self.reason = np.zeros(len(shards), np.int8)
        self.source = np.zeros(len(shards), np.int16)
        self.match = np.zeros(len(shards), np.int64)
        self.similarity = np.full((len(shards), len(shards.dims)), np.nan, np.float32)
        self._nearness = np.full(len(shards), -1.0)

    def compare_ids(self) -> None:
        """Note the clips of videos that a list names."""
        found = videos(self.shards.index["id"])
        for source, names in enumerate(self.lists):
            rows = names.find(found)
            clips = np.flatnonzero((rows >= 0) & (self.reason == 0))
            self._note(_ID, source, clips, rows[clips])

    def near(
        self, source: int, clips: Rows, match: Rows, streams: Sequence[str], cosine: Cosines
    ) -> None:
        """Note near-duplicates of clips of a set; the nearest counts, and of equals the first."""
        nearness = cosine.mean(1, dtype=float)
        before = self._nearness[clips], self.source[clips], self.match[clips]
        first = (source < before[1]) | ((source == before[1]) & (match < before[2]))
        better = (nearness > before[0]) | ((nearness == before[0]) & first)
        better &= self.reason[clips] != _ID
        clips = clips[better]
        self._note(_EMBEDDING, source, clips, match[better])
        self._nearness[clips] = nearness[better]
        self._measure(clips, streams, cosine[better])

    def duplicates(self, corpus: Embedded, roots: Rows) -> None:
        """Note all but one clip of each component of near-duplicates."""
        stands = duplicates.kept(roots, self.shards.hashes, self.reason != 0)
        clips = np.flatnonzero((stands != np.arange(len(stands))) & (self.reason == 0))
        self._note(_DUPLICATE, 0, clips, stands[clips])
        streams = list(corpus.dims)
        for start in range(0, len(clips), _CLIPS_AT_ONCE):
            some = clips[start : start + _CLIPS_AT_ONCE]
            one, other = corpus.read(some, streams), corpus.read(stands[some], streams)
            cosine = duplicates.cosines(one, other, list(corpus.dims.values()))
            self._measure(some, streams, cosine)

    def check(self, at_least: int = 0) -> None:
        """Raise `DataError` if more than half of the clips go, or `at_least` so many will."""
        gone = max(at_least, int((self.reason != 0).sum()))
        if 2 * gone <= len(self.shards):
            return
        by_id = int((self.reason == _ID).sum())
        raise DataError(
            f"{gone} of {len(self.shards)} clips of {self.shards.name}, or more, would be "
            f"excluded, {by_id} by their ids",
            remedy="against= names the set's own clips: leave that out"
            if 2 * by_id > gone
            else f"similarity={self.limit:g} does not fit this extractor: raise it, or compare "
            "ids alone with embeddings=false duplicates=false",
        )

    def counts(self) -> dict[str, int]:
        """Excluded clips by reason."""
        found = np.bincount(self.reason, minlength=1 + len(REASONS))[1:]
        return dict(zip(REASONS, found.tolist(), strict=True))

    def exclusions(self) -> Iterator[Exclusion]:
        """The clips to leave out, in their order."""
        for clip in np.flatnonzero(self.reason).tolist():
            reason, source, row = self.reason[clip], self.source[clip], int(self.match[clip])
            if reason == _ID:
                match = self.lists[source].shown[row].decode()
            else:
                match = (self.sets[source] if reason == _EMBEDDING else self.shards).id(row)
            cosine = tuple(self.similarity[clip].tolist())
            yield Exclusion(clip, self.shards.id(clip), REASONS[reason - 1], match, cosine)

    def _note(self, reason: int, source: int, clips: Rows, match: Rows) -> None:
        self.reason[clips], self.source[clips], self.match[clips] = reason, source, match

    def _measure(self, clips: Rows, streams: Sequence[str], cosine: Cosines) -> None:
        self.similarity[clips] = np.nan
        for name, column in zip(streams, cosine.T, strict=True):
            self.similarity[clips, list(self.shards.dims).index(name)] = column
