"""Progress lines where standard error is no terminal."""

from __future__ import annotations

import subprocess
import sys

JOB = """
from avvp_dist.runtime.progress import Progress
with Progress("grounding", 3, 30) as progress:
    for shard in range(3):
        progress.update(10, errors=shard)
"""


def test_a_pipe_gets_plain_lines_of_which_the_last_says_all() -> None:
    ended = subprocess.run([sys.executable, "-c", JOB], capture_output=True, check=True)
    assert b"\r" not in ended.stderr and b"\x1b" not in ended.stderr
    *_, last = ended.stderr.decode().splitlines()
    assert last.startswith("grounding: 3 of 3 shards, 30 of 30 clips, ")
    assert last.endswith(" 3 errors")


def test_parts_have_the_name_that_they_are_given() -> None:
    job = JOB.replace("3, 30", '3, 30, parts="batches"')
    ended = subprocess.run([sys.executable, "-c", job], capture_output=True, check=True)
    assert b": 3 of 3 batches, 30 of 30 clips, " in ended.stderr
