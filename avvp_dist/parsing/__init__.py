"""Parsers applied to clips: their event timelines, and the folders these are written into.

How a clip is cut into windows may change in `windows.py` alone, and what a folder holds in
`folder.py`. Forms of a timeline are in `formats/`. None of this changes what a parser decides: that
rule is in `evaluation/scores.py`.
"""
