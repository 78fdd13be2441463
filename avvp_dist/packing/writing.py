"""A shard set from any Python iterator of clips."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from pathlib import Path

from avvp_dist.commit import MANIFEST
from avvp_dist.errors import DataError
from avvp_dist.shards.indexing import PLAN, write_manifest
from avvp_dist.shards.schema import Clip, check_stream_names
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.tars import Scan, write_tar


def write_shard_set(
    clips: Iterable[Clip],
    out: Path,
    *,
    snippets: int = 0,
    dtype: str = "float16",
    clips_per_shard: int = 2000,
    extractor: str = "",
    source: Mapping[str, object] | None = None,
) -> ShardSet:
    """Write `clips` in their order; the first one fixes the streams and their dims.

    Clips with fewer than T snippets are padded and keep their length. The same clips give the same
    bytes. The manifest is written last: without it there is no shard set.

    Args:
        snippets: T of the set; 0: the number of snippets of the first clip.
        dtype: type in which features are stored, float16 or float32.
        extractor: name of what made the features.
        source: where the clips come from, for the manifest.

    Raises:
        DataError: for a clip with other streams or dims, with more than T snippets, with values
            that are not finite or that `dtype` cannot hold, or with an id that occurred before;
            for no clips at all; for a full disk.
    """
    clips = iter(clips)
    first = next(clips, None)
    if first is None:
        raise DataError(f"no clips to write into {out}")
    dims = {name: array.shape[-1] for name, array in sorted(first.streams.items())}
    check_stream_names(dims)
    snippets = snippets or max(len(array) for array in first.streams.values())
    if snippets > 255:
        raise DataError(f"clips of {snippets} snippets, more than 255")
    # Until the manifest is there, the tars must not be taken for a foreign set that is complete.
    (out / PLAN).mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    scans: list[Scan] = []
    seen: set[str] = set()
    rest = chain([first], clips)
    while block := list(islice(rest, clips_per_shard)):
        for clip in block:
            if clip.id in seen:
                raise DataError(f"clip {clip.id} occurs twice", remedy="Ids must be unique")
            seen.add(clip.id)
        padded = [clip.padded(snippets, dims, dtype) for clip in block]
        scans.append(write_tar(padded, out / f"shard-{len(scans):06d}.tar"))
    write_manifest(out, scans, extractor=extractor, source=None if source is None else dict(source))
    shutil.rmtree(out / PLAN)
    return ShardSet(out)
