"""Times what a stage costs besides its own work: the start of its process and of its kernel, its imports, its page.

    python benchmarks/overhead.py

Each stage's notebook is cut down to its imports and its parameters and run as DVC runs it, once as a process of its own
(CREAM_WARM=0) and once as a fork of the warm server, in turns. Prints a table and writes reports/benchmarks/overhead.json.
With --other, a folder with another version of this repository takes turns too.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from cream.data.files import write_json

STAGES = ["04_sample", "05_rank", "06_train", "07_evaluate"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--other", type=Path, help="a folder with another version of this repository")
    options = parser.parse_args()
    ways = {"alone": (Path.cwd(), {"CREAM_WARM": "0"}), "forked": (Path.cwd(), {})}
    if options.other:
        ways["other version"] = (options.other, {})
    seconds = {way: {stage: [] for stage in STAGES} for way in ways}
    with TemporaryDirectory() as folder:
        time_stage(*ways["forked"], STAGES[0], Path(folder))  # it starts the server
        time.sleep(20)
        for _ in range(options.repeats):
            for stage in STAGES:
                for way, place in ways.items():
                    seconds[way][stage].append(time_stage(*place, stage, Path(folder)))
    for way, found in seconds.items():
        medians = "  ".join(f"{stage} {median(values):.1f}" for stage, values in found.items())
        print(f"{way:14} median {median(sum(found.values(), [])):.1f} s   {medians}")
    write_json("reports/benchmarks/overhead.json", seconds)


def time_stage(root, environment, stage, folder):
    notebook = root / "notebooks" / f".{stage}-start.ipynb"
    notebook.write_text(json.dumps(start_of(json.loads((root / "notebooks" / f"{stage}.ipynb").read_text()))))
    command = [sys.executable, "-m", "cream.pipeline.stage", "--no-input", f"notebooks/{notebook.name}", str(folder / "page.html")]
    environment = {**os.environ, "DVC_STAGE": stage, "PYTHONPATH": str(root), **environment}
    started = time.monotonic()
    try:
        subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)
    finally:
        notebook.unlink()
    return time.monotonic() - started


def start_of(notebook):
    """The notebook up to the cell that imports and reads the parameters."""
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    last = next(i for i, source in enumerate(sources) if "load_parameters(" in source)
    return {**notebook, "cells": notebook["cells"][: last + 1]}


if __name__ == "__main__":
    main()
