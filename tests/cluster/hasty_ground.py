"""`avvp ground` that waits two seconds for a head that does not answer, where twenty are usual.

Meanwhile a thread of Ray keeps a core busy.
"""

from avvp_dist.cli import run_stage
from avvp_dist.runtime.cluster import tasks

tasks._SECONDS_BETWEEN_CHECKS = 0.5

if __name__ == "__main__":
    run_stage("ground")
