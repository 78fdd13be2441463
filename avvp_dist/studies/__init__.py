"""Studies: which settings are better, judged by the scores of parsers.

Each study is a grid of points, jobs for each point and seed, and a table. A new study is a pair of
new files here, a config class and an entry of the stage table.
"""
