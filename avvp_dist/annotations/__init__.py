"""Knowledge of clips besides their features: labels, and which videos are held out.

`llp` reads LLP's annotation files, `refined` the refined labels, `video_ids` recognises videos by
the names of their clips, `alignment` finds the clips of one list in another. Readers and messages
may be changed here alone. The fingerprints of `video_ids` are stored in `llp_heldout.npz`.
"""
