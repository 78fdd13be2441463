"""Run the entry point that is named first where DeepSpeed, MLflow and Ray cannot be imported."""

import runpy
import sys

sys.modules.update(dict.fromkeys(("deepspeed", "mlflow", "ray")))
script = next(word for word in sys.argv[1:] if not word.startswith("--local_rank"))
sys.argv.remove(script)
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
