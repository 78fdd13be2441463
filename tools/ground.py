"""Label the grounding of every clip of a shard set, on Ray.

python tools/ground.py shards=DIR
"""

from avvp_dist.config import GroundConfig
from avvp_dist.config.command_line import parse
from avvp_dist.entry import run


def main() -> None:
    config = parse(GroundConfig, __doc__)
    from avvp_dist.grounding.job import ground

    ground(config)


if __name__ == "__main__":
    run(main)
