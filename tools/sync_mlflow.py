"""Send to MLflow what it has not got of runs that are finished, or were cut off.

python tools/sync_mlflow.py RUN [RUN ...]
"""

import sys
from pathlib import Path

from avvp_dist.entry import run


def main() -> None:
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders or "--help" in sys.argv:
        print(__doc__)
        return
    from avvp_dist.tracking.mlflow_exporter import sync

    for folder in folders:
        print(f"{folder}: all sent, run {sync(folder)}")


if __name__ == "__main__":
    run(main)
