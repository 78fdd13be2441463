"""Pack features on disk into a shard set.

python tools/pack.py source=DIR split=train out=DIR
"""

from avvp_dist.config import PackConfig
from avvp_dist.config.command_line import parse
from avvp_dist.entry import run


def main() -> None:
    config = parse(PackConfig, __doc__)
    from avvp_dist.packing.job import pack

    pack(config)


if __name__ == "__main__":
    run(main)
