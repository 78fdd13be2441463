"""A rank that does as its first argument says, for the tests of the supervisor."""

import os
import signal
import sys
import time
from collections.abc import Callable

from avvp_dist import entry, errors

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
    told = next(word for word in sys.argv[1:] if not word.startswith("--local_rank"))
    if told in FAULTS:
        raise FAULTS[told]()
    if told == "environment":
        print(*(f"{name}={value}" for name, value in sorted(os.environ.items())), sep="\n")
        return
    if told == "deaf":
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    if told == "saves":
        signal.signal(signal.SIGTERM, _save)
    os.write(1, b"ready\n")  # at once, among those of others: print may write the end by itself
    time.sleep(120)


def _save(*_: object) -> None:
    raise errors.Preempted("saved")


if __name__ == "__main__":
    entry.run(main)
