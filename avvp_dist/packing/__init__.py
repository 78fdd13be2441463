"""Packing: features on disk, from an iterator, or simulated, into shard sets.

A source format is one class in `sources.py` or a file of its own, named in `job.SOURCES`; adding
one needs no other change. The layout of tars, index and manifest belongs to `shards/`.
"""
