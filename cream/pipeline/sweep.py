"""Runs a parameter file with other seeds and settings, each in a clone of HEAD, several at a time.

    python -m cream.pipeline.sweep params.yaml dpo.sft_weight=0,0.1,1 seed=1..3

makes nine runs, .runs/default/dpo.sft_weight=0,seed=1/ and so on (.runs/methods/... for profiles/methods.yaml). The
workspace's own run stays as it is. All use one DVC cache, so what two runs have in common is made once, and a second
call goes on after the last finished stage of each run. Results stay in the clones, where cream/report/seeds.py reads them.
"""

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml
from tqdm import tqdm

from cream.data.errors import InputError
from cream.data.files import write_json
from cream.pipeline.parameters import load_parameters

# $1 is the clone, $2 its params.yaml, $3 the stages to make. A clone that exists is brought to HEAD, but keeps what its own run has made. DVC
# makes hard links of what a stage wrote only if they come first; it removes them before the stage runs again. Its rwlock
# may be a killed run's: that no other is at work there has been made sure of.
RUN = """
set -e
test -e "$1/.git" || {
    rm -rf "$1" "$1.part"
    git clone --quiet . "$1.part"
    rm -rf "$1.part/results/times" "$1.part/dvc.lock"  # another run's
    mkdir -p "$1.part/results/times"
    mv "$1.part" "$1"
}
root=$PWD
mkdir -p .cache
cd "$1"
git fetch --quiet --update-shallow "$root" HEAD
git reset --quiet --soft FETCH_HEAD
git checkout --quiet --no-overlay FETCH_HEAD -- :/ ':!/results' ':!/reports' ':!/dvc.lock'
ln -sfn "$root/.cache" .cache
cp "$2" params.yaml
rm -f .dvc/tmp/rwlock
if ! grep -qsF " = $root/.dvc/cache" .dvc/config.local; then
    dvc config --local cache.type hardlink,reflink,symlink,copy
    dvc config --local cache.dir "$root/.dvc/cache"
fi
python -m cream.pipeline.check
dvc repro $3
"""
PAGES = {"loss", "noise", "consistency", "benchmark", "when", "index"}  # of a single run; seeds and sweeps have pages of all runs


def main():
    options = _options()
    try:
        runs, head = plan(options.parameters, options.settings), _head()
        folder = Path(".runs", profile_of(options.parameters)).absolute()
        logs = _open_logs(runs, folder)
    except InputError as error:
        sys.exit(str(error))
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, frame: sys.exit(128 + number))
    _forget_other_commits(folder, head)
    try:
        failed = run_all(runs, logs, folder, head, min(options.jobs, len(runs)))
    except KeyboardInterrupt:
        sys.exit("Interrupted: the same command goes on after the last finished stage of each run.")
    finally:
        _end_children()
    if failed:
        reasons = [f"{name}: {_reason(folder / f'{name}.log')}" for name in failed]
        sys.exit("\n".join([f"{len(failed)} of {len(runs)} runs failed (logs in {folder}):", *reasons]))


def profile_of(path):
    """What the runs of a parameter file are kept under: the profile's name, or "default" for params.yaml."""
    return "default" if Path(path).name == "params.yaml" else Path(path).stem


def plan(path, settings):
    """{name: (its settings, the text of its params.yaml)} for every combination of the settings' values, all checked;
    an InputError lists all that is wrong, one line each."""
    if not Path(path).is_file():
        raise InputError(f"there is no {path}: name params.yaml or a file of profiles/")
    load_parameters(path)
    text = Path(path).read_text(encoding="utf-8")
    values = [_parse(setting) for setting in settings]
    if len({key for key, _ in values}) < len(values):
        raise InputError(f"{' '.join(settings)}: a key is given twice")
    runs, problems = {}, []
    for row in itertools.product(*([(key, word) for word in words] for key, words in values)):
        name = re.sub(r"[^\w.,=+-]", "_", ",".join(f"{key}={word}" for key, word in row)) or "run"
        chosen = {key: yaml.safe_load(word) for key, word in row}
        try:
            runs[name] = chosen, _checked(text, chosen, Path(path).name)
        except InputError as error:
            problems += str(error).splitlines()
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    return runs


def finished_runs(folder, keys):
    """{run: its settings}, of the finished runs in `folder` (.runs/default) that set just these keys."""
    marks = sorted(Path(folder).glob("*.json"))
    runs = {mark.with_suffix(""): json.loads(mark.read_text(encoding="utf-8"))["settings"] for mark in marks}
    return {run: settings for run, settings in runs.items() if set(settings) == set(keys)}


def run_all(runs, logs, folder, head, jobs):
    """Makes all runs, `jobs` at a time; returns the names of those that failed."""
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    stages = {name: _count(settings, params) for name, (settings, params) in runs.items()}
    running, ended = {}, {}
    with tqdm(total=sum(stages.values()), unit="stage", disable=None) as bar:
        for wave in _waves(runs):
            while wave or running:
                while wave and len(running) < jobs:
                    name = wave.pop(0)
                    running[name] = _start(folder / name, *runs[name], logs[name], environment), time.monotonic()
                time.sleep(0.2)
                for name in [name for name, (process, _) in running.items() if process.poll() is not None]:
                    process, started = running.pop(name)
                    ended[name] = process.returncode
                    if process.returncode == 0:
                        write_json(folder / f"{name}.json", {"commit": head, "settings": runs[name][0]})
                    minutes = (time.monotonic() - started) / 60
                    tqdm.write(f"{name}: {'failed' if process.returncode else 'finished'} after {minutes:.1f} min")
                bar.n = sum(stages[name] for name in ended) + sum(_begun(folder / f"{name}.log") for name in running)
                bar.set_postfix_str(f"{len(ended)} of {len(runs)} runs ended")
    return [name for name, code in ended.items() if code]


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parameters", type=Path, help="params.yaml, or a file of profiles/")
    parser.add_argument("settings", nargs="*", metavar="key=v1,v2", help="a dotted key and its values; 1..3 is 1,2,3")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time; by default one a core")
    options = parser.parse_intermixed_args()
    if options.jobs < 1:
        parser.error("--jobs: give at least 1")
    return options


def _head():
    command = ["git", "rev-parse", "--verify", "HEAD"]
    found = shutil.which("git") and subprocess.run(command, capture_output=True, text=True)
    if not found or found.returncode:
        raise InputError("runs are made of committed code: make this folder a git repository and commit")
    return found.stdout.strip()


def _parse(setting):
    """The key and the values, still as words, of `key=v1,v2` or `key=1..3`."""
    key, equals, values = setting.partition("=")
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", values)
    words = list(map(str, range(int(bounds[1]), int(bounds[2]) + 1))) if bounds else values.split(",")
    if not (key and equals and words and all(map(_is_value, words))) or len(set(words)) < len(words):
        raise InputError(f"{setting!r} is no setting: give a key and its values, each once, as in dpo.beta=0.1,0.5")
    return key, words


def _is_value(word):
    with contextlib.suppress(yaml.YAMLError):
        yaml.safe_load(word)
        return bool(word)


def _checked(text, chosen, name):
    """The text of a parameter file with these values set; with none, as it is."""
    if not chosen:
        return text
    params = yaml.safe_load(text)
    for key, value in chosen.items():
        *above, last = key.split(".")
        place = params
        for part in above:
            place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise InputError(f"{name}: {key}: there is no {'.'.join(above)} to set it in")
        # DVC tells 1 from 1.0, and would make anew what the cache has.
        place[last] = float(value) if type(value) is int and type(place.get(last)) is float else value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        load_parameters(path)
        return path.read_text(encoding="utf-8")


def _forget_other_commits(folder, head):
    """A finished run is marked by NAME.json. That of another commit no longer counts, so that no page mixes two."""
    for mark in folder.glob("*.json"):
        if json.loads(mark.read_text(encoding="utf-8"))["commit"] != head:
            mark.unlink()


def _waves(runs):
    """First one run of each seed, which makes what the others of that seed share with it, then these."""
    first = {yaml.safe_load(params)["seed"]: name for name, (_, params) in reversed(runs.items())}
    return [name for name in runs if name in first.values()], [name for name in runs if name not in first.values()]


def _open_logs(runs, folder):
    """NAME.log of every run takes what it prints. It is locked as long as any process of the run has it open, so that
    no two write to one clone."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = {name: open(folder / f"{name}.log", "ab") for name in runs}
    for name, log in logs.items():
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder / name} is at work already: wait until it has finished, or end it") from None
    return logs


def _start(clone, settings, params, log, environment):
    """Starts one run in its clone of HEAD; NAME.yaml has its parameters."""
    parameters = clone.with_name(f"{clone.name}.yaml")
    clone.with_name(f"{clone.name}.json").unlink(missing_ok=True)
    log.truncate(0)
    parameters.write_text(params, encoding="utf-8")
    command = ["sh", "-c", RUN, "sh", str(clone), str(parameters), " ".join(_stages(settings))]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _stages(settings):
    """The stages of dvc.yaml that a run makes: all of them, or of one of several runs those that are no page of its own."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage for name, stage in stages.items() if not settings or name not in PAGES}


def _count(settings, params):
    """How many stages a run makes; a `foreach` of dvc.yaml is over rows there or over ${a key}."""
    params, count = yaml.safe_load(params), 0
    for stage in _stages(settings).values():
        rows = stage.get("foreach", [None])
        count += len(params[rows.strip("${}")] if isinstance(rows, str) else rows)
    return count


def _begun(log):
    return len(re.findall(rb"^(?:Running stage|Stage) '", log.read_bytes(), re.MULTILINE))


def _reason(log):
    """Why a run failed: what its stage said, or else its log's last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if re.match(r"Stage \S+ failed", line)), lines[-1] if lines else "")


def _end_children():
    """Ends what is left of DVC, its stages and their kernels, so that nothing goes on in the background."""
    children = psutil.Process().children(recursive=True)
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for child in children:
            try:
                ask(child)
            except psutil.NoSuchProcess:
                pass
        _, children = psutil.wait_procs(children, timeout=5)


if __name__ == "__main__":
    main()
