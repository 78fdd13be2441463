"""Features into shard sets."""
