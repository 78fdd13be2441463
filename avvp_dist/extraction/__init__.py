"""Extraction: media files into shard sets, decoded and described on Ray.

The shard set is made as packing makes one; here lies what is particular to media: which files there
are, how they are cut into clips, and the ledger that says what became of each of them.
"""
