"""Which clip comes when, and a batch of them."""
