"""Starts one notebook as a stage of the pipeline.

    python -m cream.pipeline.stage notebooks/05_rank.ipynb reports/stages/rank-m1.html policy=m1

A run has some eighty stages, so little is imported here: the work (cream/pipeline/notebook.py) is done by a fork of a
process that has imported the libraries already (cream/pipeline/warm.py).
"""

import os
import sys
from pathlib import Path

import yaml

from cream.pipeline import warm

# Left to itself, glibc gives every large block back and gets it anew, page by page, in each layer of a model.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36)}


def main():
    # The kernel runs in notebooks/, as it does in Jupyter, and imports the package of this folder.
    os.environ |= {"PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": "ignore:IProgress not found"}
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    os.environ |= {**ALLOCATOR, **os.environ}
    if _base() == "scratch":  # more threads gain such a small model nothing, and they round differently
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    warm.run("cream.pipeline.notebook", sys.argv[1:])


def _base():
    """model.base in params.yaml; None where it can't be read, of which the check of the parameters tells."""
    try:
        return yaml.safe_load(Path("params.yaml").read_bytes())["model"]["base"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return None


if __name__ == "__main__":
    main()
