"""Run every stage in turn, on a simulated corpus or on real features.

python tools/demo.py [features=DIR]
"""

from avvp_dist.config import DemoConfig
from avvp_dist.config.command_line import parse
from avvp_dist.entry import run


def main() -> None:
    config = parse(DemoConfig, __doc__)
    from avvp_dist.demo import demo

    demo(config)


if __name__ == "__main__":
    run(main)
