"""Python's own start in the tests, by PYTHONPATH.

DeepSpeed's launchers do without MLflow: they import DeepSpeed, whose autotuner imports MLflow, and
none of them uses it; it takes three of the six seconds of each. A driver of Ray starts its workers
with the Python that WARM_PYTHON names. Imports make a million objects that all stay, so looking for
garbage among them is rare; it would take a quarter of the start.
"""

import gc
import os
import sys

if any(
    word.startswith("deepspeed.launcher") or word.endswith("/deepspeed") for word in sys.orig_argv
):
    # As the import system defines it; the type of sys.modules leaves None out.
    sys.modules["mlflow"] = None  # type: ignore[assignment]
sys.executable = os.environ.get("WARM_PYTHON", sys.executable)
gc.set_threshold(50_000)
