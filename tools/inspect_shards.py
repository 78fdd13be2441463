"""Print what a shard set holds and look for faults; give foreign WebDataset tars a manifest.

python tools/inspect_shards.py DIR [--deep]
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from avvp_dist.entry import run


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("place", metavar="DIR", help="folder or URL of the shard set")
    parser.add_argument("--deep", action="store_true", help="read everything: SHA-256, numbers")
    arguments = parser.parse_args()
    from avvp_dist.shards.inspection import inspect

    inspect(arguments.place, deep=arguments.deep)


if __name__ == "__main__":
    run(main)
