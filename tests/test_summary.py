import os
import subprocess
import sys
from pathlib import Path

from test_parameters import changed

from cream.data.files import write_json
from cream.report.summary import summary


def test_every_method_has_a_line_and_every_round_a_column(tmp_path):
    train = {
        "srlm-m2": {"start": "m1", "method": "srlm"},
        "cream-m2": {"start": "m1", "method": "cream"},
        "gold-m2": {"start": "m1", "method": "srlm", "by": "gold"},
        "select-m3": {"start": "cream-m2", "method": "cream-select"},
    }
    accuracies = {"m0": 0.1, "m1": 0.5, "srlm-m2": 0.4567, "cream-m2": 0.55, "gold-m2": 0.6, "select-m3": 1.0}
    agreement = {"m0": 0.9, "m1": 0.6, "srlm-m2": 0.5, "cream-m2": 0.7, "gold-m2": 0.8, "select-m3": 0.65}
    for model, accuracy in accuracies.items():
        write_json(tmp_path / f"results/evaluate/{model}.json", {"accuracy": accuracy, "self_agreement": agreement[model]})
    for model, gap in {"srlm-m2": -0.123, "cream-m2": 0.05, "select-m3": None}.items():
        write_json(tmp_path / f"results/pairs/{model}.json", {"gap": gap})
    lines = [line.split() for line in summary(changed({"train": train}), tmp_path).splitlines()]
    assert lines[1:6] == [
        ["M0", "M1", "M2", "M3"],
        ["SRLM", "10.0", "50.0*", "45.7"],
        ["CREAM", "10.0", "50.0", "55.0*"],
        ["answer", "key", "(control)", "10.0", "50.0", "60.0*"],
        ["CREAM-select", "10.0", "50.0", "55.0*", "100.0"],
    ]
    assert lines[8:10] == [["M2"], ["SRLM", "-12.3"]] and ["CREAM", "+5.0"] in lines
    assert lines[-1] == ["See", "reports/index.html"]


def test_what_was_not_measured_is_not_said(tmp_path):
    for model in ("m0", "m1", "srlm-m2"):
        write_json(tmp_path / f"results/evaluate/{model}.json", {"accuracy": 0.5})
    text = summary(changed({"train": {"srlm-m2": {"start": "m1", "method": "srlm"}}}), tmp_path)
    assert "*" not in text and "gap" not in text and "nan" not in text


def test_wrong_parameters_are_one_sentence(tmp_path):
    command, path = [sys.executable, "-m", "cream.report.summary"], str(Path(__file__).parents[1])
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "params.yaml does not exist: copy a file of profiles/ there\n")
