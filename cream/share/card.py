"""The model card of a shared model, from the parameters and results of its run. Its sentences are in card.md."""

import copy
import json
from pathlib import Path

import pandas as pd
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.utils import httpx

from cream.data.files import read_rows
from cream.data.rows import user_message
from cream.data.tasks import MADE
from cream.models.chat import QUESTION
from cream.pipeline.parameters import lineage_of, start_of, train_row
from cream.report import results, seeds

TEMPLATE = Path(__file__).with_name("card.md")
CITATION = Path(__file__).parents[2] / "CITATION.cff"
EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"
LOCAL = "a local folder"  # in place of its path
LONGEST = 300  # characters of a response that is shown


def card_of(params, name, parameters, root=".", adapter=False):
    """The card, a huggingface_hub.ModelCard, of a model with that many parameters. What models and users wrote is shown on
    single lines of JSON in blocks of code, so that none of it can pass for text of the card."""
    kind, lineage, shown = kind_of_base(params), lineage_of(params, name), examples(name, root)
    base = {"embedded": EMBEDDED, "hub": params["model"]["base"]}.get(kind)
    licence, citation = licence_of(params, root), yaml.safe_load(CITATION.read_text(encoding="utf-8"))
    others = results.seed_rows(params, root)
    data = ModelCardData(
        model_name=name,
        base_model=base,
        eval_results=eval_results(name, root) or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["cream", "self-rewarding"],
        **licence,
    )
    return ModelCard.from_template(
        data,
        str(TEMPLATE),
        model=name,
        parameters=parameters,
        adapter=adapter,
        kind=kind,
        base=base,
        params=params,
        source=source_of(params),
        rows=_result(root, "data").get("rows", {}),
        lineage=[made_of(params, model, root) for model in lineage],
        pairs_by=train_row(params, name)["by"] if name in params["train"] else None,
        settings=yaml.safe_dump(settings_of(params, lineage), sort_keys=False).strip(),
        message=json.dumps(shown[0]["message"] if shown else QUESTION, ensure_ascii=False),
        examples=[{**row, "message": _line(row["message"]), "response": _line(row["response"])} for row in shown],
        accuracies=accuracies(params, lineage, others, root),
        questions=_result(root, "evaluate", name).get("questions"),
        kept=next((kept for line, kept in results.kept_models(params, root).items() if name in results.lines_of(params)[line][1:]), None),
        seeds=0 if others is None else others.seed.nunique(),
        licence=licence.get("license"),
        title=citation["title"],
        bibtex=bibtex(citation),
    )


def kind_of_base(params):
    """scratch, embedded, hub or folder."""
    base = params["model"]["base"]
    return base if base in ("scratch", "embedded") else "hub" if params["model"]["revision"] else "folder"


def source_of(params):
    source = params["data"]["source"]
    return source if source in MADE or source == "benchmarks" else LOCAL


def made_of(params, model, root):
    """What made a model of the lineage: its start, the method, and the number and the mean C of its pairs."""
    found = {"model": model, "start": start_of(params, model)}
    if model in params["train"]:
        pairs = _result(root, "pairs", model)
        found |= {"method": results.method_of(params, model), "pairs": pairs.get("pairs"), "C": pairs.get("C")}
    return found


def settings_of(params, lineage):
    """The parameters that shaped the models of this lineage, without the paths of whoever ran it."""
    keys = ["seed", "precision", "model", "data", "evaluation"]
    keys += ["sft"] if len(lineage) > 1 else []
    keys += ["logprob_precision", "reward_model", "sampling", "ranking", "dpo"] if len(lineage) > 2 else []
    found = copy.deepcopy({key: value for key, value in params.items() if key in keys})
    found["data"]["source"] = source_of(params)
    if kind_of_base(params) == "folder":
        found["model"]["base"] = LOCAL
    reward_model = found.get("reward_model")
    if reward_model and reward_model["base"] != "trained" and not reward_model["revision"]:
        reward_model["base"] = LOCAL
    if len(lineage) > 2:
        found |= {"rank": {model: params["rank"][model] for model in lineage[1:-1]}}
        found |= {"train": {model: params["train"][model] for model in lineage[2:]}}
    return found


def accuracies(params, lineage, others, root):
    """One row a model of the lineage that was evaluated: the accuracy of its greedy and of its sampled answers, and over the
    seeds of the rows `others` the mean of the greedy one and of its difference from M1's. Per cent with 95% intervals,
    as text."""
    found = results.evaluations(params, root).loc[lineage]
    answers = pd.DataFrame([{"model": model, **row} for model in lineage for row in _answers(model, root)])
    sampled = results.sampled_accuracy(results.sampled_shares(answers))
    over_seeds = gains = pd.DataFrame()
    if others is not None:
        over_seeds = seeds.intervals(others, "accuracy")
        gains = seeds.differences(others, [(model, "m1") for model in lineage[2:]]).set_index("model")
    return [
        {
            "model": model,
            "greedy": _percent(row.accuracy, row.low, row.high),
            "sampled": _percent(*sampled.loc[model]) if model in sampled.index else _percent(row.sampled_accuracy),
            "seeds": _percent(*over_seeds.loc[model]) if model in over_seeds.index else "–",
            "gain": _percent(*gains.loc[model, ["mean", "low", "high"]]) if model in gains.index else "–",
        }
        for model, row in found[found.accuracy.notna()].iterrows()
    ]


def eval_results(name, root):
    """The accuracy of the model's greedy answers to each task, for the metadata that the Hub reads."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=task,
            dataset_name=task,
            metric_type="accuracy",
            metric_name=f"accuracy (95% interval {row['low']} to {row['high']}, {row['questions']} questions)",
            metric_value=row["accuracy"],
        )
        for task, row in _result(root, "evaluate", name).get("tasks", {}).items()
    ]


def examples(name, root):
    """Of the test questions that the model answers right, and of those that it answers wrong, the shortest: the user's
    `message`, the `response`, and whether it is `right`."""
    path = Path(root, "data", "splits", "test.jsonl")
    asked = {row["id"]: user_message(row) for row in read_rows(path)} if path.exists() else {}
    rows = [{"message": asked[row["id"]], **row} for row in _answers(name, root) if row["id"] in asked]
    graded = [[row for row in rows if row["correct"] is right] for right in (True, False)]
    return [min(group, key=lambda row: len(row["message"])) for group in graded if group]


def licence_of(params, root):
    """{"license": ...}: this code's for a model made by it, else that of the card that the base has on the Hub or in its
    folder, with the name and link of an uncommon one; empty where none is found."""
    base, revision, kind = params["model"]["base"], params["model"]["revision"], kind_of_base(params)
    if kind in ("scratch", "embedded"):
        return {"license": "mit" if kind == "scratch" else "apache-2.0"}
    try:
        there = Path(root, base).expanduser() / "README.md"
        path = hf_hub_download(base, "README.md", revision=revision) if kind == "hub" else there
        data = ModelCard.load(path, ignore_metadata_errors=True).data
    except (OSError, ValueError, yaml.YAMLError, httpx.HTTPError):
        return {}
    found = {key: data.get(key) for key in ("license", "license_name", "license_link")}
    return {key: value for key, value in found.items() if value} if isinstance(data.license, str) else {}


def bibtex(citation):
    """The paper and the software of CITATION.cff."""
    paper = citation["preferred-citation"]
    people = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    entries = {
        "@inproceedings{wang2025cream": {
            "title": paper["title"],
            "author": " and ".join(people),
            "booktitle": paper["collection-title"],
            "year": paper["year"],
            "url": paper["url"],
        },
        "@software{cream": {
            "title": citation["title"],
            "author": "{" + citation["authors"][0]["name"] + "}",
            "version": citation["version"],
        },
    }
    written = [[head, *(f"  {key} = {{{value}}}" for key, value in of.items())] for head, of in entries.items()]
    return "\n\n".join(",\n".join(lines) + "\n}" for lines in written)


def _result(root, *names):
    path = Path(root, "results", *names).with_suffix(".json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _answers(model, root):
    path = Path(root, "data", "answers", f"{model}.jsonl")
    return read_rows(path) if path.exists() else []


def _percent(value, low=None, high=None):
    if value != value:
        return "–"
    known = low is not None and high - low > 1e-9  # M0's accuracy is the same in all seeds
    text = f"{100 * value:.1f}" + (f" ({100 * low:.1f} to {100 * high:.1f})" if known else "")
    return text.replace("-", "−")


def _line(text):
    return json.dumps(text if len(text) <= LONGEST else text[:LONGEST] + "…", ensure_ascii=False)
