"""Score anyone's predictions with the official metrics.

python tools/score.py --predictions P.npz --annotations DIR --split test --json OUT

P.npz holds filenames [N], frame_prob [N, T, 2, C] (audio, visual), video_prob [N, C] and, for
the rule `modality`, modality_prob [N, 2, C].
"""

import argparse
from pathlib import Path

from avvp_dist.entry import run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--predictions", type=Path, nargs="+", required=True, help="npz file, or one for each seed"
    )
    parser.add_argument("--annotations", type=Path, required=True, help="folder of AVVP_*.csv")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--audio-annotations", choices=("2020", "2024"), default="2024")
    parser.add_argument("--rule", choices=("video", "modality"), default="video")
    parser.add_argument("--threshold", default="0.5", help="a number, or a .npy file [2, C]")
    parser.add_argument("--json", type=Path, help="file for everything found")
    arguments = parser.parse_args()
    from avvp_dist.evaluation.predictions import score_file

    score_file(**vars(arguments))


if __name__ == "__main__":
    run(main)
