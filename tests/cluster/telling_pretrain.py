"""`launch/pretrain.py` that says which password it has, in a form that may be printed."""

from __future__ import annotations

import hashlib
import os

from avvp_dist.config import PretrainConfig
from avvp_dist.config.command_line import parse
from avvp_dist.entry import run
from avvp_dist.tasks.pretraining import pretrain


def main() -> None:
    password = os.environ["MLFLOW_TRACKING_PASSWORD"]
    print(f"password {hashlib.sha256(password.encode()).hexdigest()}", flush=True)
    pretrain(parse(PretrainConfig, __doc__ or ""))


if __name__ == "__main__":
    run(main)
