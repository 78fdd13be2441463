"""Judge groundings by the parsers over encoders that are trained on them.

python tools/study_grounding.py shards=SHARDS annotations=DIR out=DIR
"""

from avvp_dist.config import StudyConfig
from avvp_dist.config.command_line import parse
from avvp_dist.entry import run


def main() -> None:
    config = parse(StudyConfig, __doc__)
    from avvp_dist.studies.grounding import study

    study(config)


if __name__ == "__main__":
    run(main)
