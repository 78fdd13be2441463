"""Exit code of a supervised job, and the line that says why."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from avvp_dist.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DataError,
    NumericsError,
    Preempted,
)
from avvp_dist.runtime.roster import Rank, signal_name

CLUSTER, PREEMPTED = ClusterError.exit_code, Preempted.exit_code
_KINDS = {
    ConfigError.exit_code: "configuration",
    DataError.exit_code: "data",
    CheckpointError.exit_code: "checkpoint",
    CLUSTER: "cluster",
    NumericsError.exit_code: "numerics",
    PREEMPTED: "preempted",
}
_AGAIN = "The same command with trainer.resume=auto goes on from the newest checkpoint"


def judge(
    command: int, ranks: Sequence[Rank], *, asked: int = 0, orphaned: bool = False
) -> tuple[int, str]:
    """Exit code of a job, and a line for its user, which is empty if the job ended well.

    Args:
        command: exit code of the launcher, negative for a signal.
        ranks: all ranks that registered; none of them runs any more.
        asked: signal that asked the job to end; 0: none.
        orphaned: whether the launcher, or a part of it, was gone while ranks ran on.
    """
    code, why = _cause(command, ranks, asked, orphaned)
    if code == 0:
        return 0, ""
    kind = f" ({_KINDS[code]})" if code in _KINDS else ""
    remedy = f". {_AGAIN}" if code in (CLUSTER, PREEMPTED) else ""
    return code, f"exit code {code}{kind}: {why}{remedy}"


def _cause(command: int, ranks: Sequence[Rank], asked: int, orphaned: bool) -> tuple[int, str]:
    first = min((rank for rank in ranks if rank.failed), key=_blame, default=None)
    if orphaned and (first is None or _blame(first)[0] > _OWN_FAULTS):
        return CLUSTER, f"ranks lost their launcher, and the command {_ending(command)}"
    if first is None:
        return _without_ranks(command, bool(ranks), asked)
    if first.killed:
        reason = signal_name(asked) if asked else "others had ended"
        return CLUSTER, f"{first} did not end in time after {reason} and was killed"
    if asked and first.code == -signal.SIGTERM:
        return PREEMPTED, f"{signal_name(asked)} ended {first} before it could save"
    if first.code is None:
        claim = f"the launcher {_ending(command)}, but " if command == 0 else ""
        lost = -_signal_of(command) or None
        return CLUSTER, f"{claim}{first} {_ending(lost)}"
    if first.code < 0:
        return CLUSTER, f"{first} {_ending(first.code)}"
    return first.code, f"{first} {_ending(first.code)}"


_OWN_FAULTS = 3


def _blame(rank: Rank) -> tuple[int, float]:
    """Sort key of ranks: the one that ended the job first, those that it took along after it.

    A rank that names a fault comes before those that lost a peer: a rank whose peer died sees a
    broken connection, and launchers end the others with SIGTERM.
    """
    code = rank.code
    if rank.killed:  # it has not saved
        weight = 5
    elif code == -signal.SIGTERM:
        weight = 7
    elif code is None:
        weight = 4
    elif code < 0:
        weight = 1
    else:
        weight = {PREEMPTED: 6, CLUSTER: 2}.get(code, 0 if code in _KINDS else _OWN_FAULTS)
    return weight, rank.ended


def _without_ranks(command: int, registered: bool, asked: int) -> tuple[int, str]:
    """Exit code and cause where no rank failed."""
    if command == 0:
        return 0, ""
    if asked:
        return PREEMPTED, f"{signal_name(asked)} came before the job had begun to train"
    if registered:
        return CLUSTER, f"the launcher {_ending(command)}, though its ranks ended well"
    return (command if command > 0 else CLUSTER), f"the command {_ending(command)}"


def _ending(code: int | None) -> str:
    if code is None:
        return "ended without reporting how"
    return f"was killed by {signal_name(-code)}" if code < 0 else f"ended with code {code}"


def _signal_of(command: int) -> int:
    """Signal behind a launcher's exit code, 0 if none: for -9 DeepSpeed gives 247, a shell 137."""
    low = 256 - command if command > 192 else command - 128
    return low if command > 128 and low in set(signal.Signals) else 0
