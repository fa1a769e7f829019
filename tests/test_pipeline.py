"""The whole pipeline, through DVC and papermill, on profiles/test.yaml in a copy of the repository. Its second round is
not part of the finished run that the tests share: it is added to it, as one more round."""

import csv
import fcntl
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cream.data.files import read_rows, write_rows

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
SECOND_ROUND = {"rank.cream-m2": "{previous: m1}", "train.cream-m3": "{start: cream-m2, method: cream}"}


def run(folder, *command, check=True):
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("DVC_STAGE", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The files that git tracks or would track, as a repository of their own, with the test profile."""
    folder = tmp_path_factory.mktemp("repository")
    listed = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file() and name != "dvc.lock" and not name.startswith(("reports/", "results/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    profile = (ROOT / "profiles" / "test.yaml").read_text()
    for key, row in SECOND_ROUND.items():
        profile = profile.replace(f"  {key.split('.')[1]}: {row}\n", "")
    (folder / "params.yaml").write_text(profile)
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "add", ".")
    run(
        folder,
        "git",
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@example.com",
        "commit",
        "--quiet",
        "-m",
        "test profile",
    )
    return folder


@pytest.fixture(scope="module")
def finished(copy, warm, tmp_path_factory, testrun_uid):
    """The folder of a finished run. The test process that needs one first makes it for all of them."""
    kept = tmp_path_factory.getbasetemp().parent / f"finished-{testrun_uid}"
    with open(f"{kept}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if kept.exists():
            shutil.copytree(kept, copy, symlinks=True, dirs_exist_ok=True)
        else:
            run(copy, sys.executable, "-m", "cream.pipeline.check")
            run(copy, "dvc", "repro")
            shutil.copytree(copy, kept, symlinks=True)
    return copy


def test_every_model_is_made_and_evaluated(finished):
    for model in ("m0", "m1", "srlm-m2", "cream-m2", "oracle-m2"):
        assert (finished / "models" / model / "model.safetensors").exists()
        assert 0 <= json.loads((finished / f"results/evaluate/{model}.json").read_text())["accuracy"] <= 1


def assert_first_margin_is_zero(folder, model):
    with open(folder / f"results/curves/{model}.csv") as file:
        first = next(csv.DictReader(file))
    assert all(abs(float(first[name])) < 1e-3 for name in ("margin", "chosen", "rejected"))


def test_the_first_margin_of_every_training_is_zero(finished):
    for model in ("srlm-m2", "cream-m2", "oracle-m2"):
        assert_first_margin_is_zero(finished, model)


def test_a_row_of_train_chooses_who_makes_its_pairs(finished):
    rankings = {row["id"]: row["scores"] for row in read_rows(finished / "data/rankings/m1.jsonl")}
    samples = {row["id"]: row["responses"] for row in read_rows(finished / "data/samples/m1.jsonl")}
    for model, ranker in {"cream-m2": "reward", "oracle-m2": "reward_model"}.items():
        pairs = read_rows(finished / f"data/pairs/{model}.jsonl")
        assert pairs
        for pair in pairs:
            tokens = [response["tokens"] for response in samples[pair["id"]]]
            scores = rankings[pair["id"]][ranker]
            assert scores[tokens.index(pair["chosen_ids"])] == max(scores)
            assert scores[tokens.index(pair["rejected_ids"])] == min(scores)


def test_answers_are_sampled_too(finished):
    for model in ("m0", "cream-m2"):
        answers = read_rows(finished / f"data/answers/{model}.jsonl")
        found = json.loads((finished / f"results/evaluate/{model}.json").read_text())
        assert all(len(row["sampled_correct"]) == found["samples"] == 2 for row in answers)
        right = sum(sum(row["sampled_correct"]) for row in answers)
        assert found["sampled_accuracy"] == round(right / (2 * len(answers)), 4)


def test_every_ranker_has_scored_every_response(finished):
    for row in read_rows(finished / "data/rankings/m1.jsonl"):
        scores = row["scores"]
        assert scores["log_prob"] == row["policy_logps"] and scores["wrong"] == [-score for score in scores["gold"]]
        assert scores["gold"] == [float(right) for right in row["correct"]]
        assert len(set(scores["random"])) > 1 or len(set(scores["log_prob"])) == 1
        assert set(scores) >= {"reward", "previous", "vote", "judge", "reward_model"}


def test_responses_without_a_score_are_counted(finished):
    scores = [row["scores"] for row in read_rows(finished / "data/rankings/m1.jsonl")]
    summary = json.loads((finished / "results/rank/m1.json").read_text())
    for ranker in ("vote", "judge", "reward_model"):
        assert summary[f"unscored_by_{ranker}"] == sum(row[ranker].count(None) for row in scores)


def test_a_second_repro_runs_nothing_and_the_status_is_clean(finished):
    assert "Running stage" not in run(finished, "dvc", "repro").stdout
    run(finished, "dvc", "status", "--quiet")


def test_pages_open_offline_and_show_no_error(finished):
    pages = sorted((finished / "reports").rglob("*.html"))
    assert {page.name for page in pages} >= {"index.html", "consistency.html", "benchmark.html", "rank-m1.html"}
    for page in pages:
        text = page.read_text()
        assert not re.search(r'(?:src|href)="(?:https?:)?//', text), page
        assert "most recent call last" not in text and str(finished) not in text, page
        for link in re.findall(r'href="([^"#]+)"', text):
            assert (page.parent / link).exists(), (page, link)


def test_every_picture_is_on_its_page(finished):
    """Also where a stage is a fork of a process that has loaded matplotlib already (cream/pipeline/warm.py)."""
    pictures = {"sft": 1, "sample-m1": 1, "rank-m1": 2, "pairs-cream-m2": 1, "train-cream-m2": 2, "evaluate-m1": 1}
    pages = {name: (finished / f"reports/stages/{name}.html").read_text() for name in pictures}
    assert {name: page.count("<img ") for name, page in pages.items()} == pictures


def test_a_page_shows_what_its_stage_was_given_once(finished):
    page = html.unescape(re.sub("<[^>]+>", "", (finished / "reports/stages/rank-m1.html").read_text()))
    assert page.count('policy = "m1"') == 1


def test_stages_repeat_to_the_same_bytes(finished):
    stages = ["sample@m1", "rank@m1", "pairs@cream-m2", "train@cream-m2", "evaluate@cream-m2", "consistency"]
    before = (finished / "dvc.lock").read_text()
    run(finished, "dvc", "repro", "--single-item", "--force", "--no-run-cache", *stages)
    assert (finished / "dvc.lock").read_text() == before


@pytest.fixture
def edited(finished, tmp_path):
    """A copy of the finished run in which results can be written by hand, and a function that does so."""
    folder = tmp_path / "edited"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(".git", ".dvc", "models"))

    def edit(path, **columns):
        rows = read_rows(folder / path)
        write_rows(folder / path, [{**row, **{key: columns[key][i] for key in columns}} for i, row in enumerate(rows)])
        return rows

    return folder, edit


def page_of(folder, notebook, page, *parameters):
    """The cells of the page's tables, and the page."""
    command = [sys.executable, "-m", "cream.pipeline.stage", "--no-input", f"notebooks/{notebook}", f"reports/{page}"]
    run(folder, *command, *parameters)
    text = (folder / "reports" / page).read_text()
    return re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", text, re.DOTALL), text


def test_the_benchmark_finds_models_that_differ(edited):
    folder, edit = edited
    models = [path.stem for path in (folder / "data" / "answers").glob("*.jsonl")]
    questions = len(read_rows(folder / "data" / "splits" / "test.jsonl"))
    for model in models:
        edit(f"data/answers/{model}.jsonl", correct=[model == "srlm-m2"] * questions)
    cells, text = page_of(folder, "09_benchmark.ipynb", "benchmark.html")
    # All questions are for one side, so p = 2 / 2^questions. Holm: times the number of comparisons, the smallest first:
    # M1 with M0, each trained model with M1, and those of SRLM's round with SRLM.
    trained = yaml.safe_load((folder / "params.yaml").read_text())["train"]
    comparisons = 1 + len(trained) + sum(row["start"] == "m1" for row in trained.values()) - 1
    p = 2 / 2**questions
    row = ["srlm-m2", "m1", "1.000", str(questions), "0", f"{p:.3f}", f"{comparisons * p:.3f}"]
    first = cells.index("srlm-m2", cells.index("p, Holm"))
    assert cells[first : first + len(row)] == row
    assert "SRLM, M2 +100.0 points" in text and f"SRLM, M2: {questions} newly right, 0 newly wrong" in text


def test_the_benchmark_shows_as_many_transcripts_as_asked_for(edited):
    folder, edit = edited
    questions = [row["question"] for row in read_rows(folder / "data/splits/test.jsonl")]
    for model, right in (("srlm-m2", True), ("m0", False)):
        edit(f"data/answers/{model}.jsonl", correct=[right] * len(questions))
    for asked in (0, 2):
        cells, text = page_of(folder, "09_benchmark.ipynb", "benchmark.html", f"transcripts={asked}")
        captions = [html.unescape(caption) for caption in re.findall(r"<caption>(.*?)</caption>", text, re.DOTALL)]
        assert sum(any(question in caption for caption in captions) for question in questions) == asked


def test_the_consistency_report_knows_right_from_wrong(edited):
    folder, edit = edited
    correct = [[True, False, False], [False, True, False], [True, True, False], [True] * 3, [False] * 3, [False] * 3]
    rows = edit("data/rankings/m1.jsonl", correct=correct)
    wins = pairs = 0
    for row, right in zip(rows, correct):
        reward = row["scores"]["reward"]
        for i in range(3):
            for k in range(3):
                if right[i] and not right[k]:
                    wins, pairs = wins + (reward[i] > reward[k]) + (reward[i] == reward[k]) / 2, pairs + 1
    cells, _ = page_of(folder, "08_consistency.ipynb", "consistency.html")
    after = cells.index("m1", cells.index("log p of M0"))
    assert pairs == 6 and cells[after + 1].startswith(f"{wins / pairs:.2f} (")
    verdicts = [
        (right[row["chosen"]], right[row["rejected"]]) for row, right in zip(rows, correct) if row["chosen"] is not None
    ]
    first = cells.index("m1", cells.index("right of decided"))
    assert cells[first + 1 : first + 3] == [str(verdicts.count((True, False))), str(verdicts.count((False, True)))]


def test_a_new_method_trains_its_own_model_alone(finished, tmp_path):
    """A copy of CREAM under another name makes the same pairs, and of them the same model. As in a user's run, the first
    stage starts a server for the others."""
    folder = tmp_path / "more"
    shutil.copytree(finished, folder, symlinks=True)
    with open(folder / "cream/method/methods.py", "a") as file:
        file.write('\nMETHODS["cream-again"] = METHODS["cream"]\n')
    with open(folder / "params.yaml", "a") as file:
        file.write("  again-m2: {start: m1, method: cream-again}\n")
    ran = re.findall(r"Running stage '(.+)'", run(folder, "env", "-u", "CREAM_WARM", "dvc", "repro", "train").stdout)
    models = yaml.safe_load((folder / "params.yaml").read_text())["train"]
    assert sorted(ran) == sorted([*(f"pairs@{model}" for model in models), "train@again-m2"])
    for file in ("data/pairs/{}.jsonl", "models/{}/model.safetensors"):
        ours, theirs = (folder / file.format(model) for model in ("again-m2", "cream-m2"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_one_more_round_runs_only_its_own_stages(finished):
    done = run(finished, "dvc", "exp", "run", *(f"--set-param=+{key}={row}" for key, row in SECOND_ROUND.items()))
    ran = set(re.findall(r"Running stage '(.+)'", done.stdout))
    new = {"sample@cream-m2", "rank@cream-m2", "pairs@cream-m3", "train@cream-m3", "evaluate@cream-m3"}
    assert ran == new | {"consistency", "benchmark", "index"}
    rows = re.findall(r"<th[^>]*>(.*?)</th>", (finished / "reports/consistency.html").read_text())
    assert rows[rows.index("m1") + 1] == "cream-m2"
    assert "cream-m3" in (finished / "reports/benchmark.html").read_text()
    assert_first_margin_is_zero(finished, "cream-m3")


def test_methods_with_one_start_model_differ_in_nothing_but_c(finished):
    srlm, cream = (read_rows(finished / f"data/pairs/{model}.jsonl") for model in ("srlm-m2", "cream-m2"))
    assert len(srlm) > 1 and {pair.pop("consistency") for pair in srlm} == {1.0}
    assert len({pair.pop("consistency") for pair in cream} - {1.0}) == 1
    assert srlm == cream


def test_models_and_data_go_through_a_remote_and_nothing_runs_again(finished, tmp_path):
    """`dvc push` here and `dvc repro --pull` in a fresh clone, over a folder as a remote."""
    run(finished, "git", "add", ".")
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    run(finished, "git", *identity, "commit", "--quiet", "-m", "a finished run")
    remote = ["dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store")]
    run(finished, *remote)
    run(finished, "dvc", "push")
    clone = tmp_path / "clone"
    run(finished, "git", "clone", "--quiet", str(finished), str(clone))
    run(clone, *remote)
    assert not (clone / "models").exists()
    assert "Running stage" not in run(clone, "dvc", "repro", "--pull").stdout
    run(clone, "dvc", "status", "--quiet")
    for model in ("m0", "cream-m2"):
        file = f"models/{model}/model.safetensors"
        assert (clone / file).read_bytes() == (finished / file).read_bytes()


def test_sft_is_started_by_the_launcher_too(finished, tmp_path):
    folder = tmp_path / "launched"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(".git", ".dvc"))
    params = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(params.replace("launch: null", 'launch: "false"'))
    done = run(folder, sys.executable, "-m", "cream.pipeline.stage", "notebooks/03_sft.ipynb", "page.html", check=False)
    assert done.returncode == 1 and "training by `false" in done.stderr


def test_a_failed_stage_names_itself_and_leaves_the_rest(finished):
    splits = finished / "data" / "splits"
    before = sorted((path.name, path.read_bytes()) for path in splits.iterdir())
    broken = finished / "broken"
    for split in ("seed", "prompts", "test"):
        write_rows(broken / f"{split}.jsonl", read_rows(splits / "seed.jsonl"))
    (broken / "test.jsonl").write_text('{"id": "1", "task": \n')
    profile = (finished / "params.yaml").read_text()
    changed = profile.replace("source: habit", "source: broken").replace("base: scratch", "base: embedded")
    (finished / "params.yaml").write_text(changed)
    command = [sys.executable, "-m", "cream.pipeline.stage", "notebooks/01_data.ipynb", "reports/stages/data.html"]
    done = run(finished, *command, check=False)
    (finished / "params.yaml").write_text(profile)
    assert done.returncode == 1
    assert "Stage data failed in cell" in done.stderr and "broken/test.jsonl, line 1 is not JSON" in done.stderr
    assert sorted((path.name, path.read_bytes()) for path in splits.iterdir()) == before


def test_notebooks_are_stripped():
    run(ROOT, "nbstripout", "--verify", *(f"notebooks/{notebook}" for notebook in NOTEBOOKS))


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_stage_declares_the_parameters_that_its_notebook_reads(notebook):
    cells = json.loads((ROOT / "notebooks" / notebook).read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    read = set(re.findall(r'params\["(\w+)"\]', code))
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values():
        stage = stage.get("do", stage)
        if notebook in stage["cmd"] and "params.yaml" not in stage["deps"]:
            declared = {re.split(r"[.\[]", name)[0] for name in stage.get("params", [])}
            assert read - {"scale"} <= declared, f"{notebook} reads {read - declared} and dvc.yaml does not track them"
