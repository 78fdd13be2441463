"""Attention, the encoder, the parser family."""
