"""Turn a state dict of the official codes into an exported parser.

python tools/import_checkpoint.py --format han|cross_modal FILE.pt --out DIR
"""

import argparse
from pathlib import Path

from avvp_dist.entry import run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="what torch.save wrote of a state dict")
    parser.add_argument("--format", choices=("han", "cross_modal"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the exported parser")
    parser.add_argument(
        "--no-skip", action="store_false", dest="skip", help="cross_modal without skip connection"
    )
    parser.add_argument(
        "--gcaa-first-snippet",
        action="store_true",
        help="keep the fault of the released GCAA, with which its weights were trained",
    )
    arguments = parser.parse_args()
    from avvp_dist.models.official import import_checkpoint

    import_checkpoint(**vars(arguments))


if __name__ == "__main__":
    run(main)
