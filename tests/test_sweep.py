"""cream.pipeline.sweep: what it would run, in which order, and what a failing or killed run leaves. Nothing is trained."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from cream.pipeline import sweep

ROOT = Path(__file__).parents[1]
STAGES = {
    "one": {"cmd": "python stub.py one", "params": ["seed"], "outs": ["models"]},
    "two": {
        "foreach": "${train}",
        "do": {
            "cmd": "python stub.py two-${key}",
            "deps": ["models"],
            "params": ["dpo"],
            "metrics": [{"results/${key}.json": {"cache": False}}],
        },
    },
}
STUB = """
import os, sys, time
from pathlib import Path
import yaml

name, params = sys.argv[1], yaml.safe_load(Path("params.yaml").read_text())
seed, beta = params["seed"], params["dpo"]["beta"]
with open("LOG", "a") as log:
    log.write(f"{name} {seed} {beta}\\n" if name != "one" else f"one {seed} {os.environ['OMP_NUM_THREADS']}\\n")
if name == "one":
    if seed == 99:
        time.sleep(60)
    Path("models").mkdir()
    Path("models/weights").write_text(f"{seed}" * 1000)
else:
    if seed == 2 and beta == 0.5:
        sys.exit("Stage two failed in cell 3: ValueError: no luck")
    Path("results").mkdir(exist_ok=True)
    Path("results", name.removeprefix("two-") + ".json").write_text("1")
"""


@pytest.fixture
def params():
    return yaml.safe_load((ROOT / "profiles" / "test.yaml").read_text())


@pytest.fixture
def file(tmp_path, params):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    return path


def git(folder, *arguments):
    who = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with the package, and two stub stages that write down what ran."""
    folder = tmp_path_factory.mktemp("repository")
    params = yaml.safe_load((ROOT / "profiles" / "test.yaml").read_text())
    params["model"]["base"] = "embedded"
    params["train"] = {key: params["train"][key] for key in ("srlm-m2", "cream-m2")}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    (folder / "stub.py").write_text(STUB.replace("LOG", str(folder / "log")))
    (folder / "cream").symlink_to(ROOT / "cream")
    (folder / ".gitignore").write_text(".runs/\n.cache\nlog\n/models\n")
    (folder / ".dvcignore").write_text("/.runs/\n")
    git(folder, "init", "--quiet")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=folder, check=True)
    config = (ROOT / ".dvc" / "config").read_text()
    (folder / ".dvc" / "config").write_text(config)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "test")
    return folder


def start(folder, *arguments):
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "DVC_STAGE")}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(
        [sys.executable, "-m", "cream.pipeline.sweep", "params.yaml", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(folder, *arguments):
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def test_the_grid_is_every_combination(file, params):
    runs = sweep.plan(file, ["dpo.beta=0.1,1", "seed=1..3"])
    assert list(runs) == [f"dpo.beta={beta},seed={seed}" for beta in ("0.1", "1") for seed in (1, 2, 3)]
    settings, text = runs["dpo.beta=1,seed=3"]
    assert settings == {"dpo.beta": 1, "seed": 3}
    assert yaml.safe_load(text) == {**params, "seed": 3, "dpo": {**params["dpo"], "beta": 1.0}}
    assert "beta: 1.0" in text  # as the file spells it: for DVC 1 is another value


def test_without_settings_the_file_is_taken_as_it_is(file):
    assert sweep.plan(file, []) == {"run": ({}, file.read_text())}


def test_a_run_has_a_name_that_a_folder_can_have(file):
    assert list(sweep.plan(file, ["model.base=/somewhere/model"])) == ["model.base=_somewhere_model"]


@pytest.mark.parametrize(
    "settings, problem",
    [
        (["seed=x"], "params.yaml: seed: 'x' is not of type 'integer'"),
        (["seed=1..x"], "params.yaml: seed: '1..x' is not of type 'integer'"),
        (["seed"], "'seed' is no setting: give a key and its values, each once, as in dpo.beta=0.1,0.5"),
        (["seed=2..1"], "'seed=2..1' is no setting"),
        (["seed=1,,2"], "'seed=1,,2' is no setting"),
        (["seed=1,1"], "'seed=1,1' is no setting"),
        (["data.source=[a"], "'data.source=[a' is no setting"),
        (["seed=1", "seed=2"], "seed=1 seed=2: a key is given twice"),
        (["dpo.gamma=1", "seed=1..3"], "params.yaml: dpo: Additional properties are not allowed"),
        (["nowhere.r=1"], "params.yaml: nowhere.r: there is no nowhere to set it in"),
        (["model.lora.r=8"], "params.yaml: model.lora.r: there is no model.lora to set it in"),
        (["data.rounds=1,3"], "params.yaml: rank.cream-m2: round 2 has no prompts"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(file, settings, problem):
    with pytest.raises(ValueError) as error:
        sweep.plan(file, settings)
    assert str(error.value).startswith(problem) and "\n" not in str(error.value)


def test_a_file_that_is_missing_is_named():
    with pytest.raises(ValueError, match="there is no profiles/none.yaml: name params.yaml or a file of profiles/"):
        sweep.plan("profiles/none.yaml", [])


def test_what_runs_share_is_made_first(file):
    first, rest = sweep._waves(sweep.plan(file, ["dpo.beta=0.1,1", "seed=1..2"]))
    assert first == ["dpo.beta=0.1,seed=1", "dpo.beta=0.1,seed=2"]
    assert rest == ["dpo.beta=1,seed=1", "dpo.beta=1,seed=2"]


def test_the_stages_of_a_run_are_counted_from_dvc_yaml(params, monkeypatch, tmp_path):
    stages = {**STAGES, "three": {"foreach": {"a": 1, "b": 2}, "do": {}}, "index": {}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    monkeypatch.chdir(tmp_path)
    count = 1 + len(params["train"]) + 2
    assert sweep._count({}, yaml.safe_dump(params)) == count + 1
    assert sweep._count({"seed": 2}, yaml.safe_dump(params)) == count  # without the pages of the single run


def test_a_failing_run_is_named_and_the_others_finish(repository):
    (repository / "log").unlink(missing_ok=True)
    code, out, err = call(repository, "--jobs", "2", "dpo.beta=0.1,0.5", "seed=1..2")
    assert code == 1 and "1 of 4 runs failed" in err
    assert "dpo.beta=0.5,seed=2: Stage two failed in cell 3: ValueError: no luck" in err
    assert out.count(" finished after ") == 3 and "dpo.beta=0.5,seed=2: failed after" in out
    ran = (repository / "log").read_text().splitlines()
    threads = max(1, os.cpu_count() // 2)
    assert sorted(line for line in ran if line.startswith("one")) == [f"one 1 {threads}", f"one 2 {threads}"]
    assert len(ran) == 2 + 7
    runs = repository / ".runs" / "default"
    assert len(list(runs.glob("*.json"))) == 3  # the finished ones are marked
    weights = [path.stat().st_ino for path in runs.glob("*seed=1/models/weights")]
    assert len(weights) == 2 and len(set(weights)) == 1  # kept once, where the file system has hard links only


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_leaves_nothing_running(repository, how):
    process = start(repository, "seed=99")
    log = repository / "log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "one 99" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("stub.py" in " ".join(child.cmdline()) for child in children)
    code, _, err = call(repository, "seed=99,100")
    assert code == 1 and err == f"{repository}/.runs/default/seed=99 is at work already: wait until it has finished, or end it\n"
    process.send_signal(how)
    assert process.wait(timeout=20) != 0
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    log.unlink()


def test_outside_a_repository_nothing_starts(tmp_path, file):
    code, _, err = call(tmp_path, "seed=1")
    assert code == 1 and err == "runs are made of committed code: make this folder a git repository and commit\n"
    assert not (tmp_path / ".runs").exists()


def test_a_shallow_clone_makes_runs_and_follows_its_head(repository, tmp_path):
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{repository}", str(shallow))
    (shallow / "old.txt").write_text("gone in the next commit")
    git(shallow, "add", "old.txt")
    git(shallow, "commit", "--quiet", "-m", "one")
    assert call(shallow, "seed=5")[0] == 0
    git(shallow, "rm", "--quiet", "old.txt")
    (shallow / "new.txt").write_text("new")
    git(shallow, "add", "new.txt")
    git(shallow, "commit", "--quiet", "-m", "two")
    before = (repository / "log").read_text()
    (shallow / ".runs" / "default" / "seed=4.json").write_text('{"commit": "another", "settings": {}}')
    assert call(shallow, "seed=5")[0] == 0
    run = shallow / ".runs" / "default" / "seed=5"
    assert (run / "new.txt").exists() and not (run / "old.txt").exists()
    assert (repository / "log").read_text() == before  # every stage was done
    assert [mark.name for mark in run.parent.glob("*.json")] == ["seed=5.json"]
    config = (run / ".dvc" / "config.local").read_text()
    assert config.count("dir = ") == 1 and str(shallow / ".dvc" / "cache") in config
