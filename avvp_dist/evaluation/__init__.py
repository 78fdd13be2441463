"""Segment and event F-scores, and the figures."""
