"""Find out which weak labels belong to the sound and which to the picture (MA, stage 2).

python tools/refine_labels.py parser=RUN/model shards=DIR out=labels.npz
"""

from avvp_dist.config import RefineConfig
from avvp_dist.config.command_line import parse
from avvp_dist.entry import run


def main() -> None:
    config = parse(RefineConfig, __doc__)
    from avvp_dist.tasks.refinement import refine

    refine(config)


if __name__ == "__main__":
    run(main)
