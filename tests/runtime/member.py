"""A rank without training that does as its first argument says."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from avvp_dist import entry, errors
from avvp_dist.runtime.launched import launched_rank

FAULTS: dict[str, Callable[[], Exception]] = {
    "2": lambda: errors.ConfigError("as told"),
    "3": lambda: errors.DataError("as told"),
    "4": lambda: errors.CheckpointError("as told"),
    "5": lambda: errors.ClusterError("as told"),
    "6": lambda: errors.NumericsError("as told"),
    "7": lambda: errors.Preempted("as told"),
    "1": lambda: ValueError("as told"),
}


def main() -> None:
    told, *more = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    if told in FAULTS:
        raise FAULTS[told]()
    if told == "environment":
        print(*(f"{name}={value}" for name, value in sorted(os.environ.items())), sep="\n")
        return
    if told == "watched":
        _be_watched(Path(more[0]), float(more[1]))
    if told == "deaf":
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    if told == "saves":
        signal.signal(signal.SIGTERM, _save)
    os.write(1, b"ready\n")  # at once, among those of others: print may write the end by itself
    time.sleep(120)


def _be_watched(out: Path, seconds: float) -> None:
    """Make steps under a watchdog: rank 0 is stuck in its fourth, others wait for it."""
    import torch  # three seconds that other ranks of this script do without

    from avvp_dist.runtime.ranks import Ranks
    from avvp_dist.runtime.watchdog import Watchdog

    rank = launched_rank()
    with Watchdog(out, Ranks(rank, 2, torch.device("cpu")), seconds) as watchdog:
        for step in range(5 if rank else 4):
            watchdog.beat(step, "updating" if step < 4 else "waiting for rank 0")
            time.sleep(0.1)
        time.sleep(120)


def _save(*_: object) -> None:
    raise errors.Preempted("saved")


if __name__ == "__main__":
    entry.run(main)
