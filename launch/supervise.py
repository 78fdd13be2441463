"""Run a launcher under supervision: signals reach the ranks, nothing is left behind, the exit
code says what happened.

python launch/supervise.py deepspeed --num_gpus 8 launch/pretrain.py data.shards=DIR trainer.out=RUN
"""

import argparse
import sys

from avvp_dist.entry import run
from avvp_dist.runtime.supervisor import supervise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--grace", type=float, default=30, metavar="SECONDS", help="from a signal to the end of all"
    )
    parser.add_argument(
        "--pass",
        dest="passed",
        action="append",
        default=[],
        metavar="NAME",
        help="one more environment variable for the ranks",
    )
    parser.add_argument("--env-dir", metavar="DIR", help="a shared folder, for several hosts")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    given = parser.parse_args()
    if not given.command:
        parser.error("no command")
    sys.exit(supervise(given.command, grace=given.grace, passed=given.passed, folder=given.env_dir))


if __name__ == "__main__":
    run(main)
