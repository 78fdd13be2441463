"""Similarity: exact nearest-neighbour search with faiss, clip embeddings, and near-duplicates.

Nothing here knows why clips are compared: calibration and decontamination decide what to do with
the results. The search backend and its block sizes may be changed without looking elsewhere, as
long as the near-duplicates stay those of a plain product of all pairs.
"""
