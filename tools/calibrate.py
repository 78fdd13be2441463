"""Choose the similarity thresholds of a shard set.

python tools/calibrate.py shards=DIR
"""

from avvp_dist.config import CalibrateConfig
from avvp_dist.config.command_line import parse
from avvp_dist.entry import run


def main() -> None:
    config = parse(CalibrateConfig, __doc__)
    from avvp_dist.grounding.calibrate import calibrate

    calibrate(config)


if __name__ == "__main__":
    run(main)
