"""Train every row of the paper's Tables 1 and 2, and write them beside the paper's figures.

python tools/reproduce_tables.py shards=SHARDS annotations=DIR out=DIR
"""

from avvp_dist.config import TablesConfig
from avvp_dist.config.command_line import parse
from avvp_dist.entry import run


def main() -> None:
    config = parse(TablesConfig, __doc__)
    from avvp_dist.reproduction.tables import reproduce_tables

    reproduce_tables(config)


if __name__ == "__main__":
    run(main)
