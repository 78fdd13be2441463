"""Audio-visual grounding: similarity, thresholds, components, the Ray job."""
