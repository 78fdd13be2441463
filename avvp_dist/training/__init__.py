"""Training any task with DeepSpeed: the loop, the engine, checkpoints, throughput, the dry run.

`runner.py` is the one sequence of a training, `trainer.py` its loop, `task.py` what both need to
know of a task. Everything behind `Task` may be changed without looking at `tasks/`; the keys of
checkpoints (`checkpoint.py`) and the names of metrics are read by users and by `tracking/`.
"""
