"""What surrounds the text of a page: links that lead somewhere, and a stamp that is true."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from cream.data.files import write_json
from cream.pipeline import pages
from cream.pipeline.parameters import models_of

ROOT = Path(__file__).parents[1]


def links(html):
    return dict(re.findall(r'<a href="([^"]+)"[^>]*>(?:<b>)?([^<]+)', html))


def test_the_navigation_leads_from_every_folder_to_the_same_pages():
    first, deep = (links(pages.navigation(Path(page))) for page in ("reports/loss.html", "reports/stages/rank-m1.html"))
    assert list(first)[:5] == ["./index.html", "consistency.html", "benchmark.html", "./when.html", "./loss.html"]
    assert list(deep)[:5] == [f"../{name}.html" for name in ("index", "consistency", "benchmark", "when", "loss")]
    assert list(first.values()) == list(deep.values()) and list(first.values())[-1] == "Stages"
    assert '<a href="./loss.html" aria-current="page">' in pages.navigation(Path("reports/loss.html"))
    assert "aria-current" not in pages.navigation(Path("reports/benchmarks/speed.html"))


def test_the_pages_of_a_run_follow_each_other():
    assert links(pages.neighbours(Path("reports/index.html"))) == {"consistency.html": "Consistency →"}
    assert links(pages.neighbours(Path("reports/benchmark.html"))) == {"consistency.html": "← Consistency", "./when.html": "When it works →"}
    assert links(pages.neighbours(Path("reports/loss.html"))) == {"./when.html": "← When it works", "./noise.html": "Noise →"}
    assert pages.neighbours(Path("reports/methods/benchmark.html")) == pages.neighbours(Path("reports/seeds.html")) == ""


def test_a_long_page_lists_its_headings():
    short = "<h1>A</h1>" + "<h2>b</h2>" * 4
    assert pages.with_contents(short) == short
    body = pages.with_contents("<h1>A</h1><h2>b <code>c</code> &lt;</h2>" + "<h2>d</h2>" * 4)
    found = re.findall(r'<a href="#([^"]+)">([^<]*)</a>', body)
    assert found[:2] == [("part-1", "b c &lt;"), ("part-2", "d")] and len(found) == 5
    assert body.index("</h1>") < body.index("<nav") < body.index('<h2 id="part-1">b <code>c</code> &lt;</h2>')


def test_the_index_lists_what_is_kept(tmp_path):
    assert pages.kept_pages(tmp_path) == dict.fromkeys(pages.KEPT, {})
    for file in "seeds.html sweeps/b.html sweeps/a.html arena/b-m1.html arena/a-m1.html methods/benchmark.html methods/seeds.html stages/m1.html".split():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    found = pages.kept_pages(tmp_path)
    assert found["seeds"] == {"several seeds of this run": "seeds.html"} and found["speed"] == {}
    assert found["sweeps"] == {"a": "sweeps/a.html", "b": "sweeps/b.html"}
    assert found["arena"] == {"a-m1": "arena/a-m1.html", "b-m1": "arena/b-m1.html"} and found["preferences"] == {}
    assert found["profiles"] == {"methods: accuracy": "methods/benchmark.html", "methods: seeds": "methods/seeds.html"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder with a notebook, a page of it, and a package of few modules."""
    for file in "report/a.py models/used.py models/unused.py pipeline/notebook.py pipeline/pages.py pipeline/page.html".split():
        (tmp_path / "cream" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cream" / file).write_text(file)
    monkeypatch.setattr(pages, "PACKAGE", tmp_path / "cream")
    write_notebook(tmp_path, "from cream.models.used import it\n")
    (tmp_path / "page.html").write_text(f'<meta name="made-by" content="{pages.made_by("some.ipynb", tmp_path)}">')
    return tmp_path


def write_notebook(folder, *source, outputs=()):
    cell = {"cell_type": "code", "source": source, "outputs": outputs}
    (folder / "some.ipynb").write_text(json.dumps({"cells": [cell]}))


@pytest.mark.parametrize("file", ["report/a.py", "models/used.py", "pipeline/notebook.py", "pipeline/page.html"])
def test_a_page_is_older_than_the_code_that_made_it_once_that_changes(package, file):
    assert pages.is_current(package / "page.html", package)
    (package / "cream" / file).write_text("changed")
    assert not pages.is_current(package / "page.html", package)


def test_a_page_stays_current_where_other_code_changes(package):
    (package / "cream" / "models" / "unused.py").write_text("changed")
    write_notebook(package, "from cream.models.used import it\n", outputs=["a picture"])
    assert pages.is_current(package / "page.html", package)
    write_notebook(package, "from cream.models.used import it\n", "it()\n")
    assert not pages.is_current(package / "page.html", package)
    (package / "some.ipynb").unlink()
    assert not pages.is_current(package / "page.html", package)
    (package / "page.html").write_text("a page without a stamp")
    assert not pages.is_current(package / "page.html", package)


def test_a_stamp_says_how_a_page_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pages, "machine", lambda: "4 cores, z80")
    profile = (ROOT / "profiles" / "test.yaml").read_text().replace("\nprecision: fp32", "\nprecision: auto")
    monkeypatch.setenv("CREAM_BF16", "1")
    Path("profiles").mkdir()
    Path("profiles", "mine.yaml").write_text(profile)
    Path("params.yaml").write_text(re.sub(r"(?m)^seed: .*", "seed: 7", profile))
    one, several, none = '["params = load_parameters()"]', '["profile = 1", "load_parameters()"]', '["1 + 1"]'

    def stamp(source, **given):
        Path("some.ipynb").write_text(source)
        return pages.stamp("some.ipynb", given)

    assert stamp(one) == "profile mine, seed 7, bf16, 4 cores, z80"
    assert stamp(several, profile="mine") == "profile mine, bf16, 4 cores, z80"
    assert stamp(none) == "4 cores, z80"
    Path("params.yaml").write_text(profile.replace("\nprecision: auto", "\nprecision: fp32"))
    assert stamp(several) == "params.yaml, fp32, 4 cores, z80"


def test_a_stamp_says_where_the_runs_were_computed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pages, "machine", lambda: "4 cores, z80")
    profile = (ROOT / "profiles" / "test.yaml").read_text()
    models = models_of(yaml.safe_load(profile))
    settings = {"seed=1": {"seed": 1}, "seed=2": {"seed": 2}, "dpo.beta=1,seed=1": {"dpo.beta": 1, "seed": 1}}
    for name, machine in {**dict.fromkeys(settings, "fp32, an H100"), "seed=2": "bf16, an H200"}.items():
        run = tmp_path / ".runs" / "mine" / name
        write_json(run.with_name(f"{name}.json"), {"settings": settings[name]})
        for model in models:
            write_json(run / "results" / "times" / f"evaluate-{model}.json", {"seconds": 1.0, "computed": machine})
        (run / "params.yaml").write_text(profile)
    Path("profiles").mkdir()
    Path("profiles", "mine.yaml").write_text(profile)

    def stamp(source, **given):
        Path("some.ipynb").write_text(source)
        return pages.stamp("some.ipynb", given)

    several, with_models = '["profile = 1", "load_parameters()"]', '["profile = 1", "load_parameters()", "cream.models"]'
    assert stamp(several, profile="mine") == "profile mine, bf16, an H200 and fp32, an H100"
    assert stamp(several, profile="mine", keys="dpo.beta") == "profile mine, fp32, an H100"
    assert stamp(with_models, profile="mine") == "profile mine, fp32, 4 cores, z80"
    write_json(tmp_path / ".runs" / "mine" / "seed=1" / "results" / "times" / "evaluate-m1.json", {"seconds": 1.0})
    assert stamp(several, profile="mine") == "profile mine, fp32, 4 cores, z80"  # not all say where


def test_a_stamp_names_the_commit_and_changes_of_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cream").mkdir()
    Path("cream", "a.py").touch()
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        assert pages._commit() == []
        subprocess.run(["git", *command], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    Path("results.csv").touch()
    assert pages._commit() == [f"commit {head[:10]}"]
    Path("cream", "a.py").write_text("1")
    assert pages._commit() == [f"commit {head[:10]} with changes"]
