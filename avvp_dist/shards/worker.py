"""Shard sets in the tasks of a job: a worker opens one once, however many tasks come its way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from functools import lru_cache
from typing import Any

from avvp_dist.config import ReadConfig
from avvp_dist.errors import DataError
from avvp_dist.shards.shard_set import ShardSet


def read_config_of(config: ReadConfig) -> ReadConfig:
    """The part of a stage's config that says how shard sets are opened."""
    return ReadConfig(**{field.name: getattr(config, field.name) for field in fields(ReadConfig)})


def open_once(place: str, digest: str, reading: ReadConfig) -> ShardSet:
    """The shard set at `place`, whose shards that are missing or cut are met when they are read.

    Raises:
        DataError: if it is another than that of the manifest's `digest`.
    """
    return _opened(place, digest, tuple(asdict(reading).items()))


@lru_cache(maxsize=1)
def _opened(place: str, digest: str, reading: tuple[tuple[str, Any], ...]) -> ShardSet:
    shards = ShardSet(place, ReadConfig(**dict(reading)), ignore_bad)
    if shards.digest != digest:
        raise DataError(f"{place} changed during the job", remedy="Run the same command again")
    return shards


def ignore_bad(clips: Iterable[int], error: DataError) -> None:
    """What cannot be read is no error yet: who reads it counts it."""
