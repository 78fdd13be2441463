"""Score an exported parser with the official metrics.

python launch/evaluate.py parser=RUN/model shards=DIR annotations=DIR out=DIR
"""

from avvp_dist.config import EvaluateConfig
from avvp_dist.config.command_line import parse
from avvp_dist.entry import run


def main() -> None:
    config = parse(EvaluateConfig, __doc__)
    from avvp_dist.tasks.evaluation import evaluate

    evaluate(config)


if __name__ == "__main__":
    run(main)
