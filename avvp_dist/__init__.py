"""Audio-visual grounding, pretraining and video parsing, from one laptop to a cluster."""

__version__ = "0.1.0"
