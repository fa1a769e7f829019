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

# The first notebook trains for a minute; with these numbers for seconds. The run ends after the first round, and there is
# no endpoint.
CHANGES = {
    "00_cream_in_ten_minutes.ipynb": {
        "count=32000": "count=20000",
        'rows["prompts"][:600]': 'rows["prompts"][:200]',
        'rows["prompts"][600:1200]': 'rows["prompts"][200:300]',
        'test = rows["test"]': 'test = rows["test"][:100]',
    },
    "17_arena.ipynb": {
        'first = "cream-m3"': 'first = "cream-m2"',
        'judge = "http://localhost:8000/v1"': 'judge = "models/m1"',
    },
}

# Seeds and sweeps are over several runs: see test_seeds.py. Engines need vLLM, and heads larger than the tiny model's: see
# test_vllm.py.
ELSEWHERE = ("12_seeds.ipynb", "13_lm_eval.ipynb", "14_engines.ipynb", "16_sweep.ipynb")


@pytest.fixture(scope="module")
def folder(finished):  # noqa: F811
    """That of the run, where Jupyter also finds a kernel named warm: that of a stage."""
    command = [sys.executable, "-m", "cream.pipeline.warm", "ipykernel_launcher", "-f", "{connection_file}"]
    write_json(finished / "kernels" / "warm" / "kernel.json", {"argv": command, "display_name": "", "language": "python"})
    return finished


def change(notebook, changes):
    text = notebook.read_text()
    for old, new in changes.items():
        old, new = (json.dumps(code)[1:-1] for code in (old, new))
        assert text.count(old) == 1
        text = text.replace(old, new)
    notebook.write_text(text)


def run_as_in_jupyter(folder, *notebooks):
    command = ["env", f"JUPYTER_PATH={folder}", sys.executable, "-m", "cream.pipeline.warm", "pytest", "--nbval-lax"]
    command += ["--nbval-kernel-name=warm", "-p", "no:cacheprovider", *(f"notebooks/{name}" for name in notebooks)]
    return run(folder, *command).stdout


def test_notebooks_run_as_in_jupyter(folder):
    (folder / "reports" / "benchmarks").mkdir()
    (folder / "reports" / "benchmarks" / "speed.json").write_text(json.dumps(MEASURED | {"growth": [GROWN]}))
    shutil.copy(ROOT / "reports" / "benchmarks" / "gpu.json", folder / "reports" / "benchmarks")
    write_rows(folder / "data" / "preferences.jsonl", [{"prompt": "1+1=", "chosen": "2", "rejected": "3"}])
    for name, changes in CHANGES.items():
        change(folder / "notebooks" / name, changes)
    notebooks = [name for name in NOTEBOOKS if name not in ELSEWHERE]
    cells = [cell for name in notebooks for cell in json.loads((ROOT / "notebooks" / name).read_text())["cells"]]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert f"{len(code)} passed" in run_as_in_jupyter(folder, *notebooks)


def test_the_notebook_of_the_evaluation_harness_runs_as_in_jupyter(folder):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -e .[eval]")
    run_as_in_jupyter(folder, "13_lm_eval.ipynb")
