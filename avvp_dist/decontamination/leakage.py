"""Training clips that are validation or test clips too, by their ids and by their content."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avvp_dist.annotations.llp import WEAK_FILES
from avvp_dist.annotations.name_lists import read_names
from avvp_dist.annotations.video_ids import LLP, HeldOutVideos, videos
from avvp_dist.decontamination.contamination import contamination
from avvp_dist.errors import DataError
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import ignore_bad
from avvp_dist.similarity.duplicates import Rows, nearest_duplicates
from avvp_dist.similarity.embeddings import embed, joint_vectors

COMPARED_CLIPS = 50_000
"""Number of clips of a set up to which its content is compared before a training."""
_CLIPS_PER_READ = 1024


def count_leaked(
    train: ShardSet, heldout: Sequence[ShardSet], annotations: Path, *, allowed: bool
) -> int:
    """Number of clips of `train` that are cut from validation or test videos.

    Args:
        heldout: the validation clips, and the test clips if they are known.
        annotations: folder of LLP's csv files.

    Raises:
        DataError: if there are such clips and they are not `allowed`, or a list is damaged.
    """
    leaked = leaked_clips(train, heldout, annotations)
    clips = np.unique(np.concatenate([np.zeros(0, np.int64), *leaked.values()]))
    if len(clips) and not allowed:
        kinds = ", ".join(f"{len(numbers)} of {name}" for name, numbers in leaked.items())
        against = dict.fromkeys(LLP if name.startswith(f"{LLP} ") else name for name in leaked)
        raise DataError(
            f"{train.name}: {len(clips)} of {len(train)} training clips are cut from validation "
            f"or test videos: {kinds}, first {train.id(int(clips[0]))}",
            remedy=f"Leave them out with: avvp decontaminate shards={train.name} "
            f"against=[{','.join(against)}] (or set data.allow_contaminated=true)",
        )
    return len(clips)


def leaked_clips(
    train: ShardSet, heldout: Sequence[ShardSet], annotations: Path
) -> dict[str, Rows]:
    """Clips of `train` that are cut from videos of validation or test, by the name of these.

    They are those of `heldout`, of the test split in the folder `annotations` if it has one, and
    LLP's.

    Raises:
        DataError: if a list is damaged.
    """
    names: dict[str, NDArray[np.bytes_]] = {one.name: one.index["id"] for one in heldout}
    test = annotations / WEAK_FILES["test"]
    if test.is_file():
        names[str(test)] = read_names(test)
    known = contamination(train)
    lists = [HeldOutVideos.of(name, ids, "") for name, ids in names.items()]
    found = {
        one.name: np.flatnonzero((one.find(known.names.fingerprints) >= 0) & ~train.excluded)
        for one in lists
    }
    found |= known.clips
    return {name: clips for name, clips in found.items() if len(clips)}


def report_leakage(train: ShardSet, heldout: Sequence[ShardSet], similarity: float) -> None:
    """Say how many ids hold a video id, and which training clips have the content of held-out ones.

    All sets have the same streams. Clips that cannot be read are no near-duplicates.

    Args:
        heldout: the validation clips, and the test clips if they are known.
        similarity: minimum cosine of near-duplicates in each stream.
    """
    for one in (train, *heldout):
        print(videos(one.index["id"]).described(one.name), file=sys.stderr)
    if max(len(one) for one in (train, *heldout)) > COMPARED_CLIPS:
        names = " and ".join(one.name for one in heldout)
        print(
            f"{train.name} has too many clips to compare their content with that of {names} now: "
            "avvp decontaminate does it",
            file=sys.stderr,
        )
        return
    clips = np.flatnonzero(~train.excluded)
    vectors = _vectors(train, clips)
    for other in heldout:
        rows, matches, cosines = nearest_duplicates(
            vectors, _vectors(other, np.arange(len(other))), list(train.dims.values()), similarity
        )
        if len(rows):
            nearest = int(cosines.min(1).argmax())
            print(
                f"warning: {len(rows)} of {len(train)} training clips are near-duplicates of clips "
                f"of {other.name}, the nearest is {train.id(int(clips[rows[nearest]]))} of "
                f"{other.id(int(matches[nearest]))}. Leave them out with: avvp decontaminate "
                f"shards={train.name} against=[{other.name}]",
                file=sys.stderr,
            )


def _vectors(shards: ShardSet, clips: Rows) -> NDArray[np.float32]:
    """Joint vectors of some clips, in float32 `[B, sum of dims]`."""
    parts = [np.zeros((0, sum(shards.dims.values())), np.float16)]
    for start in range(0, len(clips), _CLIPS_PER_READ):
        block = clips[start : start + _CLIPS_PER_READ]
        streams, _ = shards.read(block, ignore_bad)
        parts.append(embed(streams, shards.lengths[block]))
    return joint_vectors(np.concatenate(parts), list(shards.dims.values()))
