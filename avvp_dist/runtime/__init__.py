"""Processes of a job: ranks, locks, signals, launchers, the supervisor, Slurm and Ray.

How a process starts, who it is among the ranks, how it learns that it must end, and how its end is
judged may change here alone. Nothing in this room knows shards, models or training. Only `ranks.py`
and `devices.py` import torch, and only `cluster/` imports Ray, when they are used.
`membership.py` needs the standard library alone, because it runs before anything else.
"""
