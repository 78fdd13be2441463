"""Evaluation of predictions and representations: scores, prediction files, probes, and figures.

The scores equal the official HAN evaluator's to the last bit and never change. Figures are written
here and nowhere else; a figure of another subject is a file of its own.
"""
