"""Make a registered model the champion if it validates better than the present one.

python tools/promote.py model=avvp-parser

Ends with 0 when the version is the champion now, with 8 when the old champion stays.
"""

import sys

from avvp_dist.config import PromoteConfig
from avvp_dist.config.command_line import parse
from avvp_dist.entry import run


def main() -> None:
    config = parse(PromoteConfig, __doc__)
    from avvp_dist.tracking.promotion import KEPT, promote

    sys.exit(0 if promote(config) else KEPT)


if __name__ == "__main__":
    run(main)
