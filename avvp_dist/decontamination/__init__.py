"""Decontamination: clips of a shard set that must not be trained on, found and excluded.

Clips are compared by video id and by content. The result is the list `excluded.csv`, whose format
belongs to `shards/exclusion.py`. How candidates are found and in which order comparisons run may
be changed here alone; the reasons and their precedence are part of the list.
"""
