"""Tracking: records of runs on local disk, and everything that knows MLflow.

A stage writes records through `run.Run` and never waits for MLflow; a thread exports them. What a
record holds may be extended in `records` alone, how it reaches MLflow in `mlflow_exporter`, and
names of registered models are resolved in `registry`. An export becomes an MLflow model in
`packaging` and a version in `registration`; the words of MLflow's pages are in `descriptions`.
Lines of older runs must stay readable.
"""
