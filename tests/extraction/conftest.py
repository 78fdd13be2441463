"""Fixtures of servers on loopback, which the tests of remote shard sets have too."""

from __future__ import annotations

from tests.shards.conftest import http_origin, moto_server, quick, s3_origin

__all__ = ["http_origin", "moto_server", "quick", "s3_origin"]
