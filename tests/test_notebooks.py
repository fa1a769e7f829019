"""Every notebook cell by cell, as in Jupyter, in the folder of a finished run of profiles/test.yaml."""

import json
import shutil
import sys

import pytest
from test_pipeline import NOTEBOOKS, ROOT, copy, finished, run  # noqa: F401  two are fixtures

from cream.data.files import write_json, write_rows

MEASURED = {
    "about": {"machine": "a test", "prompts": 1},
    "measurements": {
        "sampling": {
            "generate": {"seconds": [2.0, 2.2], "peak_mb": 20.0, "result": [5, 7]},
            "cream": {"seconds": [1.0, 1.0], "peak_mb": 10.0, "result": [6, 6]},
        },
        "scoring": {
            "TRL": {"seconds": [1.5, 1.5], "peak_mb": 20.0, "result": [-1.0, None]},
            "cream": {"seconds": [1.0, 1.1], "peak_mb": 10.0, "result": [-1.0, -2.0]},
        },
        "training": {
            "TRL, reference model": {"seconds": [4.0, 4.0], "peak_mb": 20.0, "result": [0.7]},
            "cream": {"seconds": [2.0, 2.0], "peak_mb": 10.0, "result": [0.7]},
        },
    },
    "machine_rate": {"scoring": 1e11},
    "operations": {"scoring": 5e10},
}
GROWN = {"N": 1, "prompts": 1, "longest response": 8, "parameters": 2e6, "measurements": MEASURED["measurements"]}


SEVERAL_RUNS = ("12_seeds.ipynb", "16_sweep.ipynb")  # see test_seeds.py


@pytest.fixture(scope="module")
def folder(finished):  # noqa: F811
    """That of the run, where Jupyter also finds a kernel named warm: that of a stage."""
    command = [sys.executable, "-m", "cream.pipeline.warm", "ipykernel_launcher", "-f", "{connection_file}"]
    write_json(finished / "kernels" / "warm" / "kernel.json", {"argv": command, "display_name": "", "language": "python"})
    return finished


@pytest.mark.parametrize("notebook", [name for name in NOTEBOOKS if name not in SEVERAL_RUNS])
def test_notebook_runs_as_in_jupyter(folder, notebook):
    if notebook == "13_lm_eval.ipynb":
        pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -e .[eval]")
    if notebook == "14_engines.ipynb":
        pytest.skip("needs vLLM, and heads larger than the tiny model's: see test_vllm.py")
    if notebook == "15_speed.ipynb":
        (folder / "reports" / "benchmarks").mkdir()
        (folder / "reports" / "benchmarks" / "speed.json").write_text(json.dumps(MEASURED | {"growth": [GROWN]}))
        shutil.copy(ROOT / "reports" / "benchmarks" / "gpu.json", folder / "reports" / "benchmarks")
    if notebook == "18_preference_accuracy.ipynb":
        write_rows(folder / "data" / "preferences.jsonl", [{"prompt": "1+1=", "chosen": "2", "rejected": "3"}])
    command = ["env", f"JUPYTER_PATH={folder}", sys.executable, "-m", "cream.pipeline.warm", "pytest"]
    run(folder, *command, "--nbval-lax", "--nbval-kernel-name=warm", "-p", "no:cacheprovider", f"notebooks/{notebook}")
