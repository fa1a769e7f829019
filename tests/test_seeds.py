"""What cream.report.seeds makes of runs, and `make seeds`, `make sweep` and `make profile` in a copy of the repository.

Two short stages are the pipeline there, whose own stages would take minutes a seed: they write the metrics that the
pages read, and which of them ran.
"""

import json
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from test_pipeline import ROOT, run

from cream.report.seeds import (
    collect,
    differences,
    differences_in_words,
    enough_seeds,
    intervals,
    intervals_from_m1,
    keep,
    less_m1,
    mean_interval,
    means_in_words,
)

MODELS = ("m0", "m1", "srlm-m2", "cream-m2")
STUB = """
import json, os, random, signal, sys
from pathlib import Path
import yaml

if sys.argv[1] in ("index", "when"):
    Path("reports").mkdir(exist_ok=True)
    Path(f"reports/{sys.argv[1]}.html").write_text(sys.argv[1])
    sys.exit()
stage, log, params = sys.argv[1], Path(sys.argv[2]), yaml.safe_load(Path("params.yaml").read_text())
seed, beta = params["seed"], params["dpo"]["beta"]
with log.open("a") as file:
    file.write(f"{stage} {seed}\\n" if stage == "train" else f"{stage} {seed} {beta}\\n")
if stage == "train":
    Path("models").mkdir(exist_ok=True)
    Path("models/m1").write_text(f"weights of seed {seed}")
else:
    if log.read_text().count(stage) == 1:
        os.killpg(0, signal.SIGKILL)  # make, DVC and all

    def write(path, **values):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(values))

    for model in MODELS:
        accuracy = round(random.Random(f"{seed} {model} {beta}").random(), 4)
        write(f"results/evaluate/{model}.json", questions=6, accuracy=accuracy, sampled_accuracy=accuracy / 2)
    for model in MODELS[2:]:
        write(f"results/pairs/{model}.json", gap=seed / 10)
        write(f"results/train/{model}.json", chosen_moved=beta + seed, rejected_moved=-beta)
    write("results/rank/m1.json", C=0.5 + seed / 10, tau_auc=0.5 + seed / 100, chosen_right=0.2, rejected_right=None)
    for name in ("consistency.html", "benchmark.html", "accuracy.svg"):
        Path("reports", name).parent.mkdir(exist_ok=True)
        Path("reports", name).write_text(f'seed {seed} <a href="./index.html"><a href="./loss.html"><a href="benchmark.html">')
"""


def frame(**accuracy):
    """Rows with these models' accuracies for the seeds 1, 2, ..."""
    rows = [
        {"seed": seed, "model": model, "accuracy": value}
        for model, values in accuracy.items()
        for seed, value in enumerate(values, start=1)
    ]
    return pd.DataFrame(rows)


def test_the_interval_is_students():
    # t(0.975, 2) = 4.302653, and the standard error of 1, 2, 3 is 1 / sqrt(3)
    found = mean_interval([1.0, 2.0, np.nan, 3.0])
    assert list(found.index) == ["mean", "sd", "low", "high"]
    assert found.tolist() == pytest.approx([2, 1, 2 - 2.484138, 2 + 2.484138], abs=1e-6)
    values = np.random.default_rng(0).normal(size=9)
    low, high = stats.t.interval(0.95, 8, values.mean(), stats.sem(values))
    assert mean_interval(values).tolist() == pytest.approx([values.mean(), values.std(ddof=1), low, high])


@pytest.mark.parametrize("values, mean", [([0.5], 0.5), ([0.5, None], 0.5), ([], np.nan)])
def test_fewer_than_two_values_have_a_mean_and_no_interval(values, mean):
    assert mean_interval(values).tolist() == pytest.approx([mean, np.nan, np.nan, np.nan], nan_ok=True)


def test_differences_are_paired_over_seeds():
    rows = frame(a=[0.5, 0.6, 0.7], b=[0.4, 0.6, 0.5])
    found = differences(rows, [("a", "b")]).iloc[0]
    assert (found.model, found.against, found.in_favour, found.seeds) == ("a", "b", 2, 3)
    # 0.1, 0 and 0.2: t = sqrt(3), and with two degrees of freedom p = 1 - t / sqrt(2 + t^2)
    assert found[["mean", "sd", "p"]].tolist() == pytest.approx([0.1, 0.1, 1 - np.sqrt(3 / 5)])
    assert found.p == pytest.approx(stats.ttest_rel([0.5, 0.6, 0.7], [0.4, 0.6, 0.5]).pvalue)
    assert [found.low, found.high] == pytest.approx([0.1 - 0.2484138, 0.1 + 0.2484138])


def test_a_seed_without_one_of_the_two_models_is_left_out():
    found = differences(frame(a=[0.5, 0.6, 0.9], b=[0.4, 0.4, np.nan]), [("a", "b")]).iloc[0]
    assert (found["mean"], found.seeds) == (pytest.approx(0.15), 2)


def test_where_the_difference_never_changes_there_is_no_p():
    found = differences(frame(a=[0.5, 0.6], b=[0.4, 0.5]), [("a", "b"), ("b", "b")])
    assert found.p.isna().all() and found["mean"].tolist() == pytest.approx([0.1, 0])
    assert differences(frame(a=[0.5], b=[0.4]), [("a", "b")]).iloc[0][["low", "p"]].isna().all()


def test_tables_of_numbers_over_seeds():
    rows = frame(b=[0.4, 0.6, 0.5], a=[0.5, 0.6, 0.7]).assign(C=[0.7, *[np.nan] * 5])
    # The means are 0.5 and 0.6 and both sds 0.1; the mean difference is 0.1 as above, all ± 0.2484138.
    means = means_in_words(rows, {"accuracy": "greedy", "C": "C"})
    assert means.loc["b"].to_dict() == {"greedy": "0.500 ± 0.248", "C": "0.700"} and means.C["a"] == "–" and list(means.index) == ["b", "a"]
    table = differences_in_words(rows, {"M1": {"x": ("a", "b")}, "x": {"x": ("b", "a")}}, {"greedy": "accuracy"})
    assert list(table.index) == ["x", "x "] and list(table["seeds in favour"]) == ["2 of 3", "0 of 3"]
    assert table.iloc[0][["accuracy", "model", "against", "p"]].tolist() == ["greedy", "a", "b", "0.225"]
    numbers = ["points", "sd", "low", "high"]
    assert table.iloc[0][numbers].tolist() == pytest.approx([10, 10, -14.84138, 34.84138])
    assert table.iloc[1][numbers].tolist() == pytest.approx([-10, 10, -34.84138, 14.84138])


def test_intervals_are_those_of_each_model_that_has_the_number():
    rows = frame(a=[1.0, 2.0, 3.0], b=[np.nan] * 3)
    found = intervals(rows, "accuracy")
    assert list(found.index) == ["a"] and found.loc["a"].tolist() == pytest.approx([2, -0.484138, 4.484138], abs=1e-6)
    assert intervals(rows[rows.model == "b"], "accuracy").empty


def test_intervals_from_m1_are_those_of_the_difference():
    accuracy = {"m0": [0.1, 0.1, 0.1], "m1": [0.5, 0.6, 0.9], "srlm-m2": [0.4, 0.55, 0.81]}
    rows = [{"seed": k, "model": name, "accuracy": values[k]} for name, values in accuracy.items() for k in range(3)]
    table = intervals_from_m1(pd.DataFrame(rows), "accuracy")
    assert list(table.index) == ["m1", "srlm-m2"]
    assert table.loc["m1"].tolist() == pytest.approx([2 / 3] * 3)
    moved = np.array([-0.1, -0.05, -0.09])
    low, high = stats.t.interval(0.95, 2, moved.mean(), stats.sem(moved))
    assert table.loc["srlm-m2"].tolist() == pytest.approx([1.76 / 3, 2 / 3 + low, 2 / 3 + high])


def test_each_run_has_its_own_m1():
    rows = [
        {"dpo.beta": beta, "seed": seed, "model": model, "accuracy": accuracy}
        for beta, seed, m1, m2 in ((0.1, 1, 0.5, 0.75), (0.1, 2, 0.25, 0.125), (0.5, 1, 0.75, 0.25))
        for model, accuracy in (("m2", m2), ("m1", m1))
    ]
    assert less_m1(pd.DataFrame(rows), "accuracy", ["dpo.beta", "seed"]).tolist() == [0.25, 0, -0.125, 0, -0.5, 0]


def test_another_profiles_rows_are_kept(tmp_path):
    path = tmp_path / "seeds.csv"
    path.write_text("seed,model,accuracy\n1,m1,0.5\n")  # from before there were profiles
    one, other = (frame(m1=values) for values in ([0.1, 0.25], [0.3]))
    for rows, profile in ((other, "methods"), (one, "default"), (one * 1, "default")):
        keep(rows.assign(profile=profile), path)
    assert path.read_text() == (
        "seed,model,accuracy,profile\n1,m1,0.1,default\n2,m1,0.25,default\n1,m1,0.3,methods\n"
    )


@pytest.fixture
def runs(tmp_path):
    """Two finished runs of each of two settings, one that is not finished, and one with another setting."""
    params = yaml.safe_load((ROOT / "profiles" / "test.yaml").read_text())
    params["rank"] = {"m1": {"previous": "m0"}}
    params["train"] = {"cream-m2": {"start": "m1", "method": "cream"}}
    for settings in [{"seed": seed, "dpo.beta": beta} for seed in (10, 9) for beta in (0.5, 0.1)] + [{"seed": 1}]:
        name = ",".join(f"{key}={value}" for key, value in settings.items())
        run = tmp_path / "default" / name
        params["seed"], params["dpo"]["beta"] = settings["seed"], settings.get("dpo.beta", 1.0)
        for kind, model, values in (
            *(("evaluate", model, {"questions": 4, "accuracy": 0.5}) for model in ("m0", "m1", "cream-m2")),
            ("rank", "m1", {"C": 0.25, "tau_auc": None}),
            ("rank", "cream-m2", {"C": 0.75}),  # left there by another run: this one ranks M1 only
            ("train", "cream-m2", {"chosen_moved": settings["seed"]}),
            ("pairs", "cream-m2", {"gap": 0.25}),
        ):
            path = run / "results" / kind / f"{model}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        (run / "params.yaml").write_text(yaml.safe_dump(params))
        run.with_name(f"{name}.json").write_text(json.dumps({"commit": "c", "settings": settings}))
    (tmp_path / "default" / "seed=2").mkdir()
    return tmp_path


def test_rows_are_of_the_finished_runs_with_these_keys(runs):
    rows = collect(runs, "default", ["dpo.beta", "seed"])
    assert [*rows.columns[:8]] == ["profile", "settings", "dpo.beta", "seed", "model", "method", "start", "round"]
    assert rows.start[1:3].tolist() == ["m0", "m1"] and rows.gap[:3].tolist() == pytest.approx([np.nan, np.nan, 0.25], nan_ok=True)
    settings = rows[["dpo.beta", "seed"]].drop_duplicates().values.tolist()
    assert settings == [[0.1, 9], [0.1, 10], [0.5, 9], [0.5, 10]]
    assert rows.model[:3].tolist() == ["m0", "m1", "cream-m2"] and rows.method[:3].tolist() == ["M0", "M1", "CREAM"]
    assert rows.C[:3].tolist() == pytest.approx([np.nan, 0.25, np.nan], nan_ok=True)
    assert rows.chosen_moved[2] == 9 and rows.tau_auc.isna().all() and rows.accuracy.eq(0.5).all()
    assert collect(runs, "default").seed.unique().tolist() == [1]
    assert collect(runs, "nowhere").empty


def test_runs_that_differ_in_something_else_are_not_mixed(runs):
    path = runs / "default" / "seed=9,dpo.beta=0.5" / "params.yaml"
    path.write_text(path.read_text().replace("temperature: 0.8", "temperature: 0.7"))
    with pytest.raises(ValueError, match="differs from the other runs in more than dpo.beta, seed: run them all again"):
        collect(runs, "default", ["dpo.beta", "seed"])


def test_null_is_a_value_like_any_other(runs):
    folder = runs / "default"
    for value in (None, 100):
        name = f"data.test_questions={value},seed=1"
        shutil.copytree(folder / "seed=1", folder / name)
        settings = {"data.test_questions": value, "seed": 1}
        (folder / f"{name}.json").write_text(json.dumps({"commit": "c", "settings": settings}))
    rows = collect(runs, "default", ["data.test_questions", "seed"])
    assert rows["data.test_questions"].unique().tolist() == [100, "null"]


def test_one_seed_is_too_few(runs):
    assert enough_seeds(collect(runs, "default", ["dpo.beta", "seed"]), "make") == [9, 10]
    with pytest.raises(ValueError, match="two seeds at least, and 1 of this commit finished: run `make seeds N=3`"):
        enough_seeds(collect(runs, "default"), "make seeds N=3")


def make(folder, *arguments):
    own_session = "import os, sys; os.setsid(); os.execvp('make', ['make', *sys.argv[1:]])"
    return run(folder, sys.executable, "-c", own_session, *arguments, check=False)


def commit(folder):
    run(folder, "git", "add", ".")
    who = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    run(folder, "git", *who, "commit", "--quiet", "--allow-empty", "-m", "test")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "stages"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """What the targets need of the repository."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("cream", "notebooks", "profiles", "data/paper"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / ".dvc").mkdir()
    (folder / "data" / "answers").mkdir()  # as in a workspace with a run
    for name in ".dvc/.gitignore .dvc/config .dvcignore .gitignore Makefile pyproject.toml requirements.txt".split():
        shutil.copy(ROOT / name, folder / name)
    run(folder, "git", "init", "--quiet")
    return folder


@pytest.fixture(scope="module")
def seeded(copy, log, warm):
    """After a `make seeds` that was killed while it evaluated seed 1, and a second one."""
    params = yaml.safe_load((copy / "profiles" / "test.yaml").read_text())
    params["model"]["base"] = "embedded"
    params["rank"] = {"m1": {"previous": "m0"}}
    params["train"] = {f"{name}-m2": {"start": "m1", "method": name} for name in ("srlm", "cream")}
    (copy / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (copy / "profiles" / "other.yaml").write_text(yaml.safe_dump({**params, "seed": 7}, sort_keys=False))
    (copy / "stub.py").write_text(f"MODELS = {MODELS}\n{STUB}")
    metrics = [f"results/evaluate/{model}.json" for model in MODELS] + ["results/rank/m1.json"]
    metrics += [f"results/{kind}/{model}.json" for model in MODELS[2:] for kind in ("pairs", "train")]
    pages = [f"reports/{name}" for name in ("consistency.html", "benchmark.html", "accuracy.svg")]
    stages = {
        "train": {"cmd": f"python stub.py train {log}", "params": ["seed"], "outs": ["models/m1"]},
        "evaluate": {
            "cmd": f"python stub.py evaluate {log}",
            "params": ["seed", "dpo"],
            "metrics": [{path: {"cache": False}} for path in metrics],
            "plots": [{path: {"cache": False}} for path in pages],
        },
        **{
            name: {"cmd": f"python stub.py {name}", "outs": [{f"reports/{name}.html": {"cache": False}}]}
            for name in ("when", "index")
        },
    }
    for stage, deps in {"train": [], "evaluate": ["models/m1"], "when": [], "index": []}.items():
        stages[stage]["deps"] = ["stub.py", *deps]
    (copy / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (copy / ".venv").mkdir()
    (copy / ".venv" / "ready").touch()  # the interpreter that runs the tests is the environment
    commit(copy)
    assert make(copy, "seeds", "N=2", "JOBS=1").returncode == -9
    done = make(copy, "seeds", "N=2", "JOBS=1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return copy


def test_an_interrupted_run_goes_on_after_its_last_finished_stage(seeded, log):
    ran = log.read_text().splitlines()[:5]
    assert ran == ["train 1", "evaluate 1 0.1", "evaluate 1 0.1", "train 2", "evaluate 2 0.1"]


def test_the_rows_are_the_metrics_of_the_runs(seeded):
    rows = pd.read_csv(seeded / "results" / "seeds.csv")
    assert list(zip(rows.seed, rows.model)) == [(seed, model) for seed in (1, 2) for model in MODELS]
    assert set(rows.profile) == {"default"}
    for row in rows.itertuples():
        results = seeded / ".runs" / "default" / f"seed={row.seed}" / "results"
        metric = json.loads((results / "evaluate" / f"{row.model}.json").read_text())
        assert (row.accuracy, row.sampled_accuracy) == (metric["accuracy"], metric["sampled_accuracy"])
        assert row.C == (0.5 + row.seed / 10) if row.model == "m1" else np.isnan(row.C)


def test_the_page_opens_offline_and_pairs_the_models_of_a_seed(seeded):
    page = (seeded / "reports" / "seeds.html").read_text()
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page) and "most recent call last" not in page
    rows = pd.read_csv(seeded / "results" / "seeds.csv")
    wide = rows.pivot(index="seed", columns="model", values="accuracy")
    difference = 100 * (wide["srlm-m2"] - wide["cream-m2"])
    half = stats.t.ppf(0.975, 1) * difference.std() / np.sqrt(2)
    numbers = [difference.mean(), difference.std(), difference.mean() - half, difference.mean() + half]
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page.split("The same in numbers")[1])
    place = next(i for i in range(len(cells)) if cells[i : i + 2] == ["srlm-m2", "cream-m2"])
    assert cells[place + 2 : place + 6] == [f"{number:.2f}" for number in numbers]


def test_the_workspace_is_left_as_it_was(seeded):
    status = run(seeded, "git", "status", "--porcelain", "--untracked-files=all").stdout.splitlines()
    made = ["dvc.lock", "reports/index.html", "reports/seeds.html", "reports/when.html", "results/seeds.csv"]
    assert status == [f"?? {name}" for name in made]
    assert not (seeded / "models").exists()


def test_a_second_make_seeds_runs_no_stage_and_writes_the_same_bytes(seeded, log):
    made = [seeded / "results" / "seeds.csv", seeded / "reports" / "seeds.html"]
    before = log.read_text(), *(path.read_bytes() for path in made)
    done = make(seeded, "seeds", "N=2")
    assert done.returncode == 0 and re.findall("Running stage '(.*)'", done.stdout) == ["when", "index"]
    assert (log.read_text(), *(path.read_bytes() for path in made)) == before


@pytest.mark.parametrize("n", ["0", "1", "-1", "2.5", "03", "+3", "x", ""])
@pytest.mark.parametrize("target", ["seeds", "sweep"])
def test_n_is_a_number_of_several_seeds(seeded, target, n):
    done = make(seeded, target, f"N={n}", "SET=dpo.beta=0.1")
    assert done.returncode == 2 and f"make {target}: N is '{n}': give an integer from 2 on" in done.stderr


def test_set_is_checked_before_anything_starts(seeded):
    done = make(seeded, "sweep", "N=2")
    assert done.returncode == 2 and "make sweep: SET is empty" in done.stderr
    done = make(seeded, "sweep", "N=2", "SET=dpo.beta=0.1,x dpo.nothing=1")
    assert done.returncode == 2 and "'x' is not of type 'number'" in done.stderr
    assert "'nothing' was unexpected" in done.stderr
    assert not list((seeded / ".runs" / "default").glob("dpo.*"))


def test_uncommitted_changes_are_refused(seeded):
    profile = (seeded / "params.yaml").read_text()
    (seeded / "params.yaml").write_text(profile + "# changed\n")
    for target in ("seeds", "sweep"):
        done = make(seeded, target, "N=2", "SET=dpo.beta=0.1")
        assert done.returncode == 2 and "commit or stash" in done.stderr and " M params.yaml" in done.stderr
    (seeded / "params.yaml").write_text(profile)


def test_a_sweep_shares_what_the_key_does_not_shape(seeded, log):
    before = len(log.read_text().splitlines())
    done = make(seeded, "sweep", "N=2", "SET=dpo.beta=1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert sorted(log.read_text().splitlines()[before:]) == ["evaluate 1 1.0", "evaluate 2 1.0"]
    runs = [seeded / ".runs" / "default" / f"dpo.beta=1,seed={seed}" for seed in (1, 2)]
    metrics = [json.loads((run / "results" / "evaluate" / "srlm-m2.json").read_text()) for run in runs]
    page = (seeded / "reports" / "sweeps" / "dpo.beta.html").read_text()
    mean = re.search(r"<th[^>]*>1, srlm-m2</th>\s*<td[^>]*>(\S+) ", page)[1]
    assert mean == f"{np.mean([metric['accuracy'] for metric in metrics]):.3f}"


def test_make_profile_keeps_its_reports_and_leaves_the_workspace(seeded):
    params = (seeded / "params.yaml").read_text()
    (seeded / "data" / "answers").rmdir()  # as in a clone without a run, which has no index to make anew
    done = run(seeded, "make", "profile", "NAME=other")
    assert "'index'" not in done.stdout
    (seeded / "data" / "answers").mkdir()
    pages = {path.name: path.read_text() for path in (seeded / "reports" / "other").iterdir()}
    assert sorted(pages) == ["accuracy.svg", "benchmark.html", "consistency.html"]
    assert pages["benchmark.html"] == 'seed 7 <a href="../index.html"><a href="../loss.html"><a href="benchmark.html">'
    assert (seeded / "params.yaml").read_text() == params and not (seeded / "models").exists()
    cache = run(seeded / ".runs" / "other" / "run", "dvc", "cache", "dir").stdout.strip()
    assert cache == str(seeded / ".dvc" / "cache")
    done = run(seeded, "make", "profile", "NAME=none", check=False)
    assert done.returncode == 2 and "there is no profiles/none.yaml" in done.stderr


def test_another_commits_runs_do_not_count(seeded, log):
    before = log.read_text()
    commit(seeded)
    page = ["notebooks/12_seeds.ipynb", "reports/seeds.html"]
    run(seeded, sys.executable, "-m", "cream.pipeline.sweep", "params.yaml", "seed=1")
    done = run(seeded, sys.executable, "-m", "cream.pipeline.stage", "--no-input", *page, check=False)
    assert done.returncode == 1
    assert "needs two seeds at least, and 1 of this commit finished: run `make seeds N=3`" in done.stderr
    assert log.read_text() == before  # what the commit did not change is not run again


def test_finished_stages_can_come_from_the_run_cache():
    """DVC's run-cache passes over a stage that has an uncached out which is neither a metric nor a plot. That is no
    loss where a page is all that a stage makes."""
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        outs = stage.get("do", stage).get("outs", [])
        uncached = [out for out in outs if isinstance(out, dict)]
        assert len(uncached) in (0, len(outs)), f"{name}: make these metrics or plots: {uncached}"
