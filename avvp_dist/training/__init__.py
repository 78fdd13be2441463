"""One trainer over a DeepSpeed engine, and the two tasks it trains."""
