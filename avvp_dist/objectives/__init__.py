"""Grounding losses and parsing losses."""
