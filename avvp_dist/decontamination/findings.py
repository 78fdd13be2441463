"""Findings about each clip of a shard set: whether to exclude it, why, and what it matches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from avvp_dist.annotations.video_ids import LLP, HeldOutVideos, described, videos
from avvp_dist.errors import DataError
from avvp_dist.shards.exclusion import Exclusion
from avvp_dist.shards.manifest import REASONS
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.similarity.duplicates import Cosines, Rows, representatives
from avvp_dist.similarity.embeddings import EmbeddingStore, stream_cosines

_CLIPS_PER_READ = 4096
_ID, _EMBEDDING, _DUPLICATE = range(1, 1 + len(REASONS))


@dataclass(frozen=True)
class Matches:
    """Near-duplicates of clips in another shard set, one for each clip."""

    clips: Rows
    """Clip numbers in the shard set that is decontaminated, `[M]`."""
    matches: Rows
    """Clip numbers in the other set, `[M]`."""
    streams: Sequence[str]
    """Streams that both sets have."""
    cosines: Cosines
    """Cosine in each of these streams, `[M, streams]`."""


class Findings:
    """Reason and match of each clip that is to be excluded from `shards`.

    Per clip: `reason` int8 `[N]` is 0 for clips that stay, else 1 + the place in `REASONS`.
    `source` int16 `[N]` says which list (reason `id`) or shard set (`embedding`) the clip matches,
    `match` int64 `[N]` which row of it. `similarity` float32 `[N, streams]` holds the cosines, NaN
    for a stream that was not compared.

    Args:
        lists: videos that must stay unseen.
        sets: shard sets that must stay unseen.
        threshold: the minimum cosine of near-duplicates, for messages.
    """

    def __init__(
        self, shards: ShardSet, lists: list[HeldOutVideos], sets: list[ShardSet], threshold: float
    ) -> None:
        self.shards, self.lists, self.sets, self.threshold = shards, lists, sets, threshold
        self.reason = np.zeros(len(shards), np.int8)
        self.source = np.zeros(len(shards), np.int16)
        self.match = np.zeros(len(shards), np.int64)
        self.similarity = np.full((len(shards), len(shards.dims)), np.nan, np.float32)
        self.read = 0
        """Clips whose ids hold a video id, once `add_ids` has looked."""
        self._mean_cosine = np.full(len(shards), -1.0)

    def add_ids(self) -> None:
        """Record the clips of videos that are in a list; the first list with a video counts.

        Raises:
            DataError: for a list without any video id or clip of the set.
        """
        corpus = videos(self.shards.index["id"])
        self.read = int(corpus.read.sum())
        for source, names in enumerate(self.lists):
            rows = names.find(corpus.fingerprints)
            if not names.read and not (rows >= 0).any() and names.name not in self._set_names():
                raise DataError(
                    f"{names.name}: none of its {names.ids} names, such as "
                    f"{names.shown[0].decode()}, holds a video id or names a clip of "
                    f"{self.shards.name}",
                    remedy="Give a list of video ids or clip names: one a line, or a column",
                )
            clips = np.flatnonzero((rows >= 0) & (self.reason == 0))
            self._record(_ID, source, clips, rows[clips])

    def add_matches(self, source: int, new: Matches) -> None:
        """Record near-duplicates of clips of the shard set number `source`.

        The nearest match of a clip counts, and the first one of equally near matches, so that the
        order in which comparisons end does not matter. A match by id counts more.
        """
        mean = new.cosines.mean(1, dtype=float)
        clips, match = new.clips, new.matches
        best, best_source, best_match = (
            self._mean_cosine[clips],
            self.source[clips],
            self.match[clips],
        )
        first = (source < best_source) | ((source == best_source) & (match < best_match))
        better = (mean > best) | ((mean == best) & first)
        better &= self.reason[clips] != _ID
        clips = clips[better]
        self._record(_EMBEDDING, source, clips, match[better])
        self._mean_cosine[clips] = mean[better]
        self._set_similarity(clips, new.streams, new.cosines[better])

    def add_duplicates(self, corpus: EmbeddingStore, roots: Rows) -> None:
        """Record all but one clip of each component of near-duplicates within the shard set.

        Args:
            roots: the lowest clip of the component of each clip, `[N]`.
        """
        kept = representatives(roots, self.shards.hashes, self.reason != 0)
        clips = np.flatnonzero((kept != np.arange(len(kept))) & (self.reason == 0))
        self._record(_DUPLICATE, 0, clips, kept[clips])
        streams = list(corpus.dims)
        for start in range(0, len(clips), _CLIPS_PER_READ):
            block = clips[start : start + _CLIPS_PER_READ]
            one, other = corpus.load(block, streams), corpus.load(kept[block], streams)
            cosines = stream_cosines(one, other, list(corpus.dims.values()))
            self._set_similarity(block, streams, cosines)

    def check(self, at_least: int = 0) -> None:
        """Raise `DataError` if more than half of the clips are to be excluded.

        Args:
            at_least: number of clips that will certainly be excluded later.
        """
        excluded = max(at_least, int((self.reason != 0).sum()))
        if 2 * excluded <= len(self.shards):
            return
        by_id = int((self.reason == _ID).sum())
        raise DataError(
            f"{excluded} of {len(self.shards)} clips of {self.shards.name}, or more, would be "
            f"excluded, {by_id} by their ids",
            remedy="against= names the set's own clips: leave that out"
            if 2 * by_id > excluded
            else f"similarity={self.threshold:g} does not fit this extractor: raise it, or compare "
            "ids alone with embeddings=false duplicates=false",
        )

    def counts(self) -> dict[str, int]:
        """Number of excluded clips by reason."""
        counts = np.bincount(self.reason, minlength=1 + len(REASONS))[1:]
        return dict(zip(REASONS, counts.tolist(), strict=True))

    def exclusions(self) -> Iterator[Exclusion]:
        """Clips to exclude, in their order in the shard set."""
        for clip in np.flatnonzero(self.reason).tolist():
            reason, source, row = self.reason[clip], self.source[clip], int(self.match[clip])
            if reason == _ID:
                match = self.lists[source].shown[row].decode()
            else:
                match = (self.sets[source] if reason == _EMBEDDING else self.shards).id(row)
            cosines = tuple(self.similarity[clip].tolist())
            yield Exclusion(clip, self.shards.id(clip), REASONS[reason - 1], match, cosines)

    def names_read(self) -> str:
        """How many names of the set and of each list hold a video id, for the user."""
        counted = [(self.shards.name, self.read, len(self.shards))]
        counted += [(one.name, one.read, one.ids) for one in self.lists if one.name != LLP]
        return "\n".join(described(*one) for one in counted)

    def _set_names(self) -> set[str]:
        return {one.name for one in self.sets}

    def _record(self, reason: int, source: int, clips: Rows, match: Rows) -> None:
        self.reason[clips], self.source[clips], self.match[clips] = reason, source, match

    def _set_similarity(self, clips: Rows, streams: Sequence[str], cosines: Cosines) -> None:
        self.similarity[clips] = np.nan
        for name, column in zip(streams, cosines.T, strict=True):
            self.similarity[clips, list(self.shards.dims).index(name)] = column
