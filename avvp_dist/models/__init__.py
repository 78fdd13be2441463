"""Networks: attention, the encoder, the parser family, and each under its training objective.

A layer or a switch is added here and in its config alone. Names of parameters are a contract:
exported weights and checkpoints are loaded by them (`export`).
"""
