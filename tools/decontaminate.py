"""Leave clips out of training that are held out elsewhere, or there twice.

python tools/decontaminate.py shards=DIR --against llp --against SHARDS/test
"""

from avvp_dist.config import DecontaminateConfig
from avvp_dist.config.command_line import parse
from avvp_dist.entry import run


def main() -> None:
    config = parse(DecontaminateConfig, __doc__)
    from avvp_dist.decontamination.job import decontaminate

    decontaminate(config)


if __name__ == "__main__":
    run(main)
