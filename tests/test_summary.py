import json
import os
import subprocess
import sys
from pathlib import Path

from test_parameters import changed

from cream.report.summary import summary


def test_every_method_has_a_line_and_every_round_a_column(tmp_path):
    train = {
        "srlm-m2": {"start": "m1", "method": "srlm"},
        "cream-m2": {"start": "m1", "method": "cream"},
        "gold-m2": {"start": "m1", "method": "srlm", "by": "gold"},
        "select-m3": {"start": "cream-m2", "method": "cream-select"},
    }
    accuracies = {"m0": 0.1, "m1": 0.5, "srlm-m2": 0.4567, "cream-m2": 0.55, "gold-m2": 0.6, "select-m3": 1.0}
    (tmp_path / "results" / "evaluate").mkdir(parents=True)
    for model, accuracy in accuracies.items():
        (tmp_path / "results" / "evaluate" / f"{model}.json").write_text(json.dumps({"accuracy": accuracy}))
    lines = [line.split() for line in summary(changed({"train": train}), tmp_path).splitlines()]
    assert lines[1:] == [
        ["M0", "M1", "M2", "M3"],
        ["SRLM", "10.0", "50.0", "45.7"],
        ["CREAM", "10.0", "50.0", "55.0"],
        ["answer", "key", "(control)", "10.0", "50.0", "60.0"],
        ["CREAM-select", "from", "cream-m2", "10.0", "50.0", "100.0"],
        ["See", "reports/index.html"],
    ]


def test_wrong_parameters_are_one_sentence(tmp_path):
    command, path = [sys.executable, "-m", "cream.report.summary"], str(Path(__file__).parents[1])
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "params.yaml does not exist: copy a file of profiles/ there\n")
