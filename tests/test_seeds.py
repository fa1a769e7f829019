"""`make seeds` in a copy of the repository: its experiments, what an interruption costs, and the report.

Two short stages stand in for the pipeline, whose own stages would take minutes a seed: they write the metrics that the
report reads, and which of them ran.
"""

import csv
import json
import re
import sys

import numpy as np
import pytest
import yaml
from scipy import stats
from test_pipeline import ROOT, copy, run  # noqa: F401  copy is a fixture

MODELS = ("m0", "m1", "srlm-m2", "cream-m2")
STUB = """
import json, os, random, signal, sys
from pathlib import Path
import yaml

if sys.argv[1] == "index":
    Path("reports").mkdir(exist_ok=True)
    Path("reports/index.html").write_text("index")
    sys.exit()
stage, log, seed = sys.argv[1], Path(sys.argv[2]), yaml.safe_load(Path("params.yaml").read_text())["seed"]
with log.open("a") as file:
    file.write(f"{stage} {seed}\\n")
if stage == "train":
    Path("models").mkdir(exist_ok=True)
    Path("models/m1").write_text(f"weights of seed {seed}")
else:
    if log.read_text().count(stage) == 1:
        os.killpg(0, signal.SIGKILL)  # make, DVC and all
    for model in MODELS:
        path = Path("results/evaluate", f"{model}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        accuracy = round(random.Random(f"{seed} {model}").random(), 4)
        path.write_text(json.dumps({"questions": 6, "accuracy": accuracy}))
    path = Path("results/rank/m1.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"C": 0.5 + seed / 10, "tau_mean": 0.1, "chosen_right": 0.2, "rejected_right": None}))
    for name in ("consistency.html", "benchmark.html", "accuracy.svg"):
        Path("reports", name).parent.mkdir(exist_ok=True)
        Path("reports", name).write_text(f'seed {seed} <a href="./index.html"><a href="./benchmark.html">')
"""


def make_seeds(folder, n):
    own_session = "import os; os.setsid(); os.execvp('make', ['make', 'seeds', 'N=%s'])" % n
    return run(folder, sys.executable, "-c", own_session, check=False)


def commit(folder):
    run(folder, "git", "add", ".")
    who = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    run(folder, "git", *who, "commit", "--quiet", "--allow-empty", "-m", "test")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "stages"


@pytest.fixture(scope="module")
def seeded(copy, log):  # noqa: F811
    """After a `make seeds` that was killed while it evaluated seed 1, and a second one."""
    params = yaml.safe_load((copy / "params.yaml").read_text())
    params["rank"] = {"m1": {"previous": "m0"}}
    params["train"] = {f"{name}-m2": {"start": "m1", "method": name} for name in ("srlm", "cream")}
    (copy / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (copy / "stub.py").write_text(f"MODELS = {MODELS}\n{STUB}")
    metrics = [*(f"results/evaluate/{model}.json" for model in MODELS), "results/rank/m1.json"]
    stages = {
        "train": {
            "cmd": f"python stub.py train {log}",
            "deps": ["stub.py"],
            "params": ["seed"],
            "outs": ["models/m1"],
        },
        "evaluate": {
            "cmd": f"python stub.py evaluate {log}",
            "deps": ["stub.py", "models/m1"],
            "params": ["seed"],
            "metrics": [{path: {"cache": False}} for path in metrics],
        },
    }
    stages["index"] = {
        "cmd": "python stub.py index",
        "deps": ["stub.py"],
        "outs": [{"reports/index.html": {"cache": False}}],
    }
    (copy / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (copy / ".venv").mkdir()
    (copy / ".venv" / "ready").touch()  # the interpreter that runs the tests is the environment
    commit(copy)
    assert make_seeds(copy, 2).returncode == -9
    done = make_seeds(copy, 2)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return copy


def test_an_interrupted_run_goes_on_after_its_last_finished_stage(seeded, log):
    ran = log.read_text().splitlines()
    assert ran == ["train 1", "evaluate 1", "evaluate 1", "train 2", "evaluate 2"]


def test_the_rows_are_the_metrics_of_the_experiments(seeded):
    with open(seeded / "results" / "seeds.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["model"]) for row in rows] == [(seed, model) for seed in "12" for model in MODELS]
    refs = run(seeded, "git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    for row in rows:
        (ref,) = [ref for ref in refs if ref.endswith(f"/seed-{row['seed']}")]
        metric = run(seeded, "git", "show", f"{ref}:results/evaluate/{row['model']}.json").stdout
        assert float(row["accuracy"]) == json.loads(metric)["accuracy"]
        assert row["C"] == ({"1": "0.6", "2": "0.7"}[row["seed"]] if row["model"] == "m1" else "")


def test_the_report_opens_offline_and_pairs_the_models_of_a_seed(seeded):
    page = (seeded / "reports" / "seeds.html").read_text()
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page) and "most recent call last" not in page
    with open(seeded / "results" / "seeds.csv") as file:
        accuracy = {(row["seed"], row["model"]): float(row["accuracy"]) for row in csv.DictReader(file)}
    difference = np.array([accuracy[seed, "cream-m2"] - accuracy[seed, "srlm-m2"] for seed in "12"])
    half = stats.t.ppf(0.975, 1) * difference.std(ddof=1) / np.sqrt(2)
    numbers = [difference.mean(), difference.std(ddof=1), difference.mean() - half, difference.mean() + half]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page.split("Differences in accuracy, paired")[1])
    row = cells.index("srlm-m2")
    assert cells[row + 1 : row + 5] == [f"{number:.3f}" for number in numbers]


def test_the_workspace_is_left_as_it_was(seeded):
    status = run(seeded, "git", "status", "--porcelain", "--untracked-files=all").stdout.splitlines()
    assert status == [f"?? {name}" for name in ("dvc.lock", "reports/index.html", "reports/seeds.html", "results/seeds.csv")]
    assert not (seeded / "models").exists()


def test_a_second_make_seeds_runs_no_stage_and_writes_the_same_bytes(seeded, log):
    made = [seeded / "results" / "seeds.csv", seeded / "reports" / "seeds.html"]
    before = log.read_text(), *(path.read_bytes() for path in made)
    done = make_seeds(seeded, 2)
    assert done.returncode == 0 and re.findall("Running stage '(.*)'", done.stdout) == ["index"]
    assert (log.read_text(), *(path.read_bytes() for path in made)) == before


@pytest.mark.parametrize("n", ["0", "x"])
def test_n_is_a_positive_integer(seeded, n):
    done = make_seeds(seeded, n)
    assert done.returncode == 2 and f"N is '{n}': give a positive integer" in done.stderr


def test_uncommitted_changes_are_refused(seeded):
    profile = (seeded / "params.yaml").read_text()
    (seeded / "params.yaml").write_text(profile + "# changed\n")
    done = make_seeds(seeded, 2)
    (seeded / "params.yaml").write_text(profile)
    assert done.returncode == 2 and "commit or stash" in done.stderr and " M params.yaml" in done.stderr


def test_make_profile_keeps_its_reports_and_leaves_the_workspace(seeded):
    params = (seeded / "params.yaml").read_text()
    (seeded / "profiles" / "other.yaml").write_text(params.replace("seed: 1", "seed: 7"))
    done = run(seeded, "make", "profile", "NAME=other", check=False)
    assert done.returncode == 2 and "commit or stash these changes" in done.stderr
    commit(seeded)
    for _ in range(2):  # the second time over what the first one left
        run(seeded, "make", "profile", "NAME=other")
    pages = {path.name: path.read_text() for path in (seeded / "reports" / "other").iterdir()}
    assert sorted(pages) == ["accuracy.svg", "benchmark.html", "consistency.html"]
    assert pages["benchmark.html"] == 'seed 7 <a href="../index.html"><a href="./benchmark.html">'
    assert (seeded / "params.yaml").read_text() == params and not (seeded / "models").exists()
    cache = run(seeded / ".runs" / "other", "dvc", "cache", "dir").stdout.strip()
    assert cache == str(seeded / ".dvc" / "cache")
    assert make_seeds(seeded, 3).returncode == 0  # its copy of the repository leaves the profile's run out
    (seeded / "profiles" / "other.yaml").unlink()
    done = run(seeded, "make", "profile", "NAME=other", check=False)
    assert done.returncode == 2 and "there is no profiles/other.yaml" in done.stderr


def test_another_commit_has_no_seeds_yet(seeded):
    commit(seeded)
    command = [sys.executable, "-m", "cream.stage", "--no-input", "notebooks/12_seeds.ipynb", "reports/seeds.html"]
    done = run(seeded, *command, check=False)
    assert done.returncode == 1
    assert "needs at least two seeds and the current commit has 0: run `make seeds N=3`" in done.stderr


def test_finished_stages_can_come_from_the_run_cache():
    """DVC's run-cache passes over a stage that has an uncached out which is neither a metric nor a plot. That is no
    loss where a page is all that a stage makes."""
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        outs = stage.get("do", stage).get("outs", [])
        uncached = [out for out in outs if isinstance(out, dict)]
        assert len(uncached) in (0, len(outs)), f"{name}: make these metrics or plots: {uncached}"
