"""Started as one rank: `make gpu-check` without the launcher's option."""

from __future__ import annotations

import sys

from avvp_dist.entry import run
from tools.bench.gpu_check import main

sys.argv = [word for word in sys.argv if not word.startswith("--local_rank")]
run(main)
