"""Shard sets, the clip stream, and the annotations that go with them."""
