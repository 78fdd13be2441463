"""Send the records of finished or cut-off runs to MLflow.

python tools/sync_mlflow.py RUN [RUN ...]
"""

import sys
from pathlib import Path

from avvp_dist.errors import ConfigError, run


def main() -> None:
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders or "--help" in sys.argv:
        print(__doc__)
        return
    from avvp_dist.tracking.mlflow_feed import Feed
    from avvp_dist.tracking.records import RECORDS

    for folder in folders:
        if not (folder / RECORDS).is_file():
            raise ConfigError(f"{folder} holds no {RECORDS}")
        feed = Feed(folder)
        feed.flush()
        print(f"{folder}: all sent, run {feed.state['run_id']}")


if __name__ == "__main__":
    run(main)
