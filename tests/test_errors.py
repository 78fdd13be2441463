"""Errors: their exit codes as documented, and their remedies."""

from __future__ import annotations

import re

from avvp_dist import errors
from avvp_dist.errors import (
    AvvpError,
    CheckpointError,
    ClusterError,
    ConfigError,
    DataError,
    NumericsError,
    Preempted,
)

DOCUMENTED = {
    "configuration": ConfigError,
    "data": DataError,
    "checkpoint": CheckpointError,
    "cluster": ClusterError,
    "numerics": NumericsError,
    "preempted": Preempted,
}


def test_exit_codes_are_as_documented() -> None:
    table = re.findall(r"^\| (\d+) \| (\w+):", errors.__doc__ or "", re.MULTILINE)
    assert {word: int(code) for code, word in table} == {
        word: kind.exit_code for word, kind in DOCUMENTED.items()
    }


def test_every_error_is_documented_and_has_its_own_code() -> None:
    assert set(AvvpError.__subclasses__()) == set(DOCUMENTED.values())
    codes = [kind.exit_code for kind in (AvvpError, *DOCUMENTED.values())]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes


def test_the_remedy_follows_what_was_wrong() -> None:
    assert str(DataError("shard 3 is missing")) == "shard 3 is missing"
    assert str(DataError("shard 3 is missing", remedy="Copy it")) == "shard 3 is missing. Copy it"
