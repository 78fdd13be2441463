"""Losses: grounding and negatives from other clips, and the losses of the parser.

Functions of tensors that know no model. A new term or another choice of negatives is made here
alone; `avvp_dist.models` puts a model and its loss together.
"""
