"""Write a simulated corpus of clip features: with annotations, or for the clips of real ones.

python tools/simulate.py out=DIR
python tools/simulate.py annotations=CSVS out=DIR
"""

from avvp_dist.config import SimulateConfig
from avvp_dist.config.command_line import parse
from avvp_dist.entry import run


def main() -> None:
    config = parse(SimulateConfig, __doc__)
    from avvp_dist.packing.simulation import simulate

    simulate(config)


if __name__ == "__main__":
    run(main)
