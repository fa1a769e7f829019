"""The set-up files agree with each other."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]


def test_every_requirement_is_locked_to_one_version():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    locked = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["test"]} <= locked


def test_every_requirement_runs_on_the_least_python_asked_for():
    least = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=") + ".0"
    names = [line.split("==")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()]
    needs = {name: metadata(name)["Requires-Python"] or "" for name in names}
    assert {name: need for name, need in needs.items() if not SpecifierSet(need).contains(least)} == {}


def test_conda_takes_the_same_pins():
    *_, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert pip == {"pip": ["-r requirements.txt"]}


def test_ci_and_readme_use_the_same_test_command():
    assert "\nmake test" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


def test_the_estimates_in_the_docs_are_those_of_the_script():
    command = [sys.executable, "profiles/estimate.py"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout and done.stdout in (ROOT / "docs" / "paper.md").read_text()
