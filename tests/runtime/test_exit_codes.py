"""The exit code of a job, from how its processes ended."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from avvp_dist.runtime.exit_codes import judge
from avvp_dist.runtime.roster import Rank

KILL, TERM = -signal.SIGKILL, -signal.SIGTERM


def ranks(*codes: int | None, killed: tuple[int, ...] = ()) -> list[Rank]:
    """Ranks that ended one after the other."""
    return [
        Rank(n, 100 + n, "host", None, False, code, ended=n + 1.0, killed=n in killed)
        for n, code in enumerate(codes)
    ]


@pytest.mark.parametrize(
    ("command", "codes", "options", "code", "words"),
    [
        (0, (0, 0), {}, 0, ""),
        (0, (), {}, 0, ""),
        (3, (), {}, 3, "the command ended with code 3"),
        (KILL, (), {}, 5, "the command was killed by SIGKILL"),
        (TERM, (), {"asked": signal.SIGTERM}, 7, "SIGTERM came before"),
        (1, (0, 0), {}, 5, "the launcher ended with code 1, though its ranks ended well"),
        (0, (0, None), {}, 5, "code 0, but rank 1 (pid 101, host) ended without reporting"),
        (247, (None, 1), {}, 1, "rank 1"),  # a traceback says more than silence
        (247, (0, None), {}, 5, "rank 1 (pid 101, host) was killed by SIGKILL"),
        (247, (1, KILL), {}, 5, "rank 1 (pid 101, host) was killed by SIGKILL"),
        (1, (TERM, 1), {}, 1, "rank 1 (pid 101, host) ended with code 1"),
        (5, (5, 6), {}, 6, "rank 1"),
        (7, (7, 7), {}, 7, "rank 0 (pid 100, host) ended with code 7"),
        (1, (7, 5), {"asked": signal.SIGTERM}, 5, "rank 1"),
        (0, (7, 7), {"orphaned": True}, 5, "ranks lost their launcher"),
        (0, (3, TERM), {"orphaned": True}, 3, "rank 0"),
        (1, (7, TERM), {"asked": signal.SIGTERM}, 7, "rank 0"),
        (1, (TERM, TERM), {"asked": signal.SIGUSR1}, 7, "SIGUSR1 ended rank 0"),
    ],
)
def test_the_cause_counts_and_not_its_consequences(
    command: int, codes: tuple[int | None, ...], options: dict[str, Any], code: int, words: str
) -> None:
    found, line = judge(command, ranks(*codes), **options)
    assert found == code
    assert words in line and (code == 0) == (line == "")


def test_a_rank_that_had_to_be_killed_did_not_save() -> None:
    code, line = judge(1, ranks(7, KILL, killed=(1,)), asked=signal.SIGTERM)
    assert code == 5
    assert "rank 1 (pid 101, host) did not end in time after SIGTERM and was killed" in line
