"""A shard set on disk: what it is, how it is verified, opened and read."""
