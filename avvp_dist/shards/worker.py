"""Shard sets in the tasks of a job: a worker process opens a set once and keeps it for all tasks.

Tasks get the place of a shard set and its digest, not the opened set, which cannot be sent to
another process.
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache

from avvp_dist.config import ReadConfig
from avvp_dist.errors import DataError
from avvp_dist.shards.shard_set import ShardSet
from avvp_dist.shards.verification import ignore_bad


def read_config_of(config: ReadConfig) -> ReadConfig:
    """The part of a stage's config that says how shard sets are opened."""
    return ReadConfig(**{field.name: getattr(config, field.name) for field in fields(ReadConfig)})


def open_once(place: str, digest: str, config: ReadConfig) -> ShardSet:
    """The shard set at `place`, opened at the first call in this process.

    A shard that is missing or cut off is no error here. It is reported when its clips are read.

    Raises:
        DataError: if the manifest there has another SHA-256 than `digest`.
    """
    return _opened(place, digest, config.verify, config.cache, config.cache_gib)


@lru_cache(maxsize=1)
def _opened(place: str, digest: str, verify: str, cache: str, cache_gib: float) -> ShardSet:
    shards = ShardSet(place, ReadConfig(verify, cache, cache_gib), ignore_bad)
    if shards.digest != digest:
        raise DataError(f"{place} changed during the job", remedy="Run the same command again")
    return shards
