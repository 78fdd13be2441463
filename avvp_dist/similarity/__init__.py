"""Exact nearest-neighbour search and near-duplicates, with faiss."""
