"""`avvp study-labels` in a checkout."""

from avvp_dist.cli import run_stage

if __name__ == "__main__":
    run_stage("study-labels")
