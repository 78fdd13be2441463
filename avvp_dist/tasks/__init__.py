"""The tasks: pretraining, fine-tuning, and the stages that apply a trained parser.

A trained task opens its data and builds its model (`training/task.py`); how it is trained is not
known here. Refinement, evaluation and prediction run a parser over a shard set, and probing an
encoder. Each file may be changed without looking at the others, except that all parsers are run by
`prediction.py`.
"""
