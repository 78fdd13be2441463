"""Order of the clips, and batches of them.

`order` permutes an epoch, `stream` cuts it into steps, ranks and micro-batches, `mixture` joins
several shard sets, `loader` reads ahead, `damage` counts unreadable clips, `heldout` chooses clips
for validation. The order and the held-out clips are contracts: a checkpoint goes on in the same
order, and scores are compared on the same clips. How batches are read may be changed here alone.
"""
