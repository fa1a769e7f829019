"""What surrounds the text of a page: the navigation, its contents, and the stamp that says how it was made."""

import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import yaml

from cream.pipeline.parameters import load_parameters, models_of
from cream.pipeline.sweep import finished_runs

PACKAGE = Path(__file__).parents[1]
# The pages of a run in reading order, each the neighbour of the next.
RUN = {"index": "CREAM", "consistency": "Consistency", "benchmark": "Accuracy", "when": "When it works", "loss": "Loss", "noise": "Noise"}
# What other commands make. It may be missing, so a page links the part of the index that lists what is there.
KEPT = {
    "introduction": "python -m cream.pipeline.stage notebooks/00_cream_in_ten_minutes.ipynb reports/introduction.html",
    "seeds": "make seeds N=5",
    "sweeps": 'make sweep SET="dpo.sft_weight=0,0.1,1" N=3',
    "profiles": "make profile NAME=methods",
    "arena": "make arena FIRST=cream-m3 SECOND=m1 JUDGE=http://localhost:8000/v1",
    "preferences": "make preference-accuracy FILE=pairs.jsonl",
    "speed": "make bench",
    "engines": "python -m cream.pipeline.stage notebooks/14_engines.ipynb reports/engines.html",
    "architectures": "python tests/architectures.py",
}
SINGLE = [
    ("introduction", "CREAM in ten minutes, a notebook as it ran", "introduction.html"),
    ("seeds", "several seeds of this run", "seeds.html"),
    ("preferences", "how often the rewards prefer the chosen response", "preference_accuracy.html"),
    ("speed", "compared with other ways to sample, score and train", "benchmarks/speed.html"),
    ("engines", "what transformers, Ray and vLLM write to the same prompts", "engines.html"),
    ("architectures", "which model families are tested", "architectures.md"),
]
LONG = 5  # headings from which on a page gets a list of them


def navigation(page):
    """The links at the top of a page: the same on each. `make profile` copies two pages one folder down and lets what
    begins with ./ lead one folder up; the links between these two stay as they are."""
    links = [_link(page, name, f"<b>{text}</b>" if name == "index" else text) for name, text in RUN.items()]
    links += [f'<a href="{_home(page)}/index.html#{name}">{name.capitalize()}</a>' for name in (*KEPT, "stages")]
    return f'<nav aria-label="All pages">{" ".join(links)}</nav>'


def neighbours(page):
    """The links at the foot of a page of the run, to the ones before and after it."""
    names = list(RUN)
    if page.parent != Path("reports") or page.stem not in RUN:
        return ""
    place = names.index(page.stem)
    before = [_link(page, name, f"← {RUN[name]}") for name in names[:place][-1:]]
    after = [_link(page, name, f"{RUN[name]} →") for name in names[place + 1 :][:1]]
    return f'<nav class="neighbours" aria-label="Previous and next">{" ".join(before + after)}</nav>'


def with_contents(body):
    """A page with links to its headings below its title, where it has many."""
    titles = [re.sub("<[^>]+>", "", title).strip() for title in re.findall("<h2>(.*?)</h2>", body, re.DOTALL)]
    if len(titles) < LONG:
        return body
    parts = itertools.count(1)
    body = re.sub("<h2>", lambda _: f'<h2 id="part-{next(parts)}">', body)
    links = " ".join(f'<a href="#part-{part}">{title}</a>' for part, title in enumerate(titles, 1))
    return body.replace("</h1>", f'</h1>\n<nav aria-label="On this page">{links}</nav>', 1)


def kept_pages(reports):
    """{kind of KEPT: {what its link says: a file in the folder `reports`}}, of those that are there."""
    reports, found = Path(reports), {kind: {} for kind in KEPT}
    for kind, text, file in SINGLE:
        found[kind] |= {text: file} if (reports / file).exists() else {}
    found["sweeps"] = {page.stem: f"sweeps/{page.name}" for page in sorted(reports.glob("sweeps/*.html"))}
    found["arena"] = {page.stem: f"arena/{page.name}" for page in sorted(reports.glob("arena/*.html"))}
    for folder in sorted(page.parent.name for page in reports.glob("*/benchmark.html")):
        names = (name for name in ("consistency", "benchmark", "seeds") if (reports / folder / f"{name}.html").exists())
        found["profiles"] |= {f"{folder}: {RUN.get(name, 'Seeds').lower()}": f"{folder}/{name}.html" for name in names}
    return found


def made_by(notebook, root="."):
    """A notebook of the folder `root` and a hash of all that makes a page of it: its cells, the modules that it imports,
    `cream/report`, and the code and template of pages."""
    cells = json.loads(Path(root, notebook).read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    modules = {PACKAGE.joinpath(*name.split(".")).with_suffix(".py") for name in re.findall(r"from cream\.([\w.]+)", source)}
    pipeline = {PACKAGE / "pipeline" / name for name in ("notebook.py", "page.html", "pages.py")}
    files = sorted(path for path in modules | pipeline | {*PACKAGE.glob("report/*.py")} if path.is_file())
    digest = hashlib.sha256(source.encode())
    for path in files:
        digest.update(path.read_bytes())
    return f"{notebook} {digest.hexdigest()[:12]}"


def is_current(page, root="."):
    """Whether the code that made a page is that of the folder `root` as it is now."""
    found = re.search(r'<meta name="made-by" content="([^" ]+) \w+">', Path(page).read_text(encoding="utf-8"))
    notebook = found and Path(root, found[1])
    return bool(notebook) and notebook.is_file() and f'"{made_by(found[1], root)}"' in found[0]


def stamp(notebook, given):
    """How a page was made: by which parameters, in what precision and where, from which commit. `given` are the parameters
    that the notebook was started with. A notebook with a profile is over several seeds, and its text says which."""
    source, words = Path(notebook).read_text(encoding="utf-8"), [machine()]
    if "load_parameters" in source:
        profile = given.get("profile", "default")
        path = "params.yaml" if profile == "default" else f"profiles/{profile}.yaml"
        params, several = load_parameters(path), '"profile = ' in source
        keys = {"seed", *filter(None, given.get("keys", "").split(","))}
        runs = finished_runs(Path(".runs", profile), keys) if several else [Path()]
        # What uses models is computed here; other pages show what the stages of their runs computed.
        computed = "" if re.search(r"cream\.(models|inference|training)", source) else _computed_in(runs)
        seed = [] if several else [f"seed {params['seed']}"]
        words = [_same_profile(path), *seed, computed or computed_here(params["precision"])]
    return ", ".join([*words, *_commit()])


def computed_here(precision):
    """In what precision this machine samples, and what machine it is."""
    import torch

    from cream.models.precision import dtype_of

    return f"{'bf16' if dtype_of(precision) == torch.bfloat16 else 'fp32'}, {machine()}"


def machine():
    """The GPU, or the cores and the kind of CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"{os.cpu_count()} cores, {platform.machine()}"


def _computed_in(runs):
    """Where the models of these runs were evaluated; nothing, unless the times of all these stages say so."""
    models = {run: models_of(yaml.safe_load((run / "params.yaml").read_text(encoding="utf-8"))) for run in runs}
    times = [run / "results" / "times" / f"evaluate-{model}.json" for run in runs for model in models[run]]
    found = {json.loads(path.read_text(encoding="utf-8")).get("computed", "") if path.exists() else "" for path in times}
    return "" if "" in found else " and ".join(sorted(found))


def _same_profile(path):
    """The file of profiles/ that reads the same but for the seed; else the path itself, whatever that now holds."""
    same = (other.stem for other in sorted(Path("profiles").glob("*.yaml")) if _but_seed(other) == _but_seed(path))
    return next((f"profile {name}" for name in same), path)


def _but_seed(path):
    return re.sub(r"^seed:.*", "", Path(path).read_text(encoding="utf-8"), flags=re.MULTILINE)


def _commit():
    """The commit, and whether the code has changed since; nothing outside a repository."""
    commit = _git("rev-parse", "--verify", "--quiet", "--short=10", "HEAD")
    changed = " with changes" if commit and _git("status", "--porcelain", "--", "cream", "notebooks") else ""
    return [f"commit {commit}{changed}"] if commit else []


def _git(*arguments):
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()


def _home(page):
    return os.path.relpath("reports", page.parent)


def _link(page, name, text):
    """To a page of the run: the two that belong to each profile by the way from here, the others from the folder of all."""
    near = os.path.relpath(f"reports/{name}.html", page.parent)
    place = near if name in ("consistency", "benchmark") else f"{_home(page)}/{name}.html"
    here = ' aria-current="page"' if near == page.name else ""
    return f'<a href="{place}"{here}>{text}</a>'
