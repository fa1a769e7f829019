"""params.yaml: loaded, checked as a whole, and read as a lineage of models."""

import hashlib
import json
import math
import sys
from pathlib import Path

import yaml

# Where JupyterLab is installed, jsonschema loads a grammar of web addresses, for seconds in each process of each stage.
# No schema here has an address; without the grammar jsonschema leaves that check out.
sys.modules.setdefault("rfc3987_syntax", None)
from jsonschema import Draft202012Validator, validators  # noqa: E402

from cream.data.errors import InputError
from cream.data.tasks import MADE
from cream.method.methods import METHODS

# Who ranks every policy's responses; the others rank where the policy's row of `rank` names them.
ALWAYS = ("reward", "previous", "log_prob", "vote", "gold", "wrong", "random")
SCHEMA = Path(__file__).with_name("parameters.schema.yaml")

# JSON Schema counts 5.0 as an integer and .nan and .inf as numbers; what the parameters go to does not.
STRICT = Draft202012Validator.TYPE_CHECKER.redefine_many(
    {
        "integer": lambda _, value: type(value) is int,
        "number": lambda _, value: type(value) in (int, float) and math.isfinite(value),
    }
)
NAME = r"^[a-z][a-z0-9-]{0,63}\Z"  # of a row: DVC takes dots for nesting, and YAML 1.2 takes 1e3 for a number
Validator = validators.extend(Draft202012Validator, type_checker=STRICT)


class Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, as DVC does, in place of taking the last."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} is given twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def load_parameters(path):
    """The parameters of a run, every key checked; an InputError lists all that is wrong, one line each."""
    try:
        params = yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader)
    except FileNotFoundError:
        if str(path) == "../params.yaml" and Path("params.yaml").exists():
            raise InputError("notebooks run in the folder notebooks/: give papermill --cwd notebooks") from None
        if str(path) == "params.yaml" and Path("../params.yaml").exists():
            raise InputError("params.yaml is in the folder above: run this there") from None
        raise InputError(f"{path} does not exist: copy a file of profiles/ there") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    validator = Validator(yaml.safe_load(SCHEMA.read_text(encoding="utf-8")))
    problems = [_sentence(error) for error in validator.iter_errors(params)]
    problems = problems or _scratch_problems(params) + _lineage_problems(params)
    if problems:
        raise InputError("\n".join(f"{Path(path).name}: {problem}" for problem in problems))
    return _with_defaults(params)


def _with_defaults(params):
    """With the values of the keys that a file may leave out: the paper's loss, no noise, and no samples in the evaluation."""
    return {
        "precision": "auto",
        "logprob_precision": "fp32",
        **params,
        "model": {"scratch": None, **params["model"]},
        "ranking": {"noise": 0.0, **params["ranking"]},
        "dpo": {"sft_weight": 0.0, **params["dpo"]},
        "evaluation": {"samples": 0, **params["evaluation"]},
    }


def settings_digest(params):
    """What tells settings apart whose models cannot be compared: a hash of all but the seed, where the work is done, and
    the lineage, of which the models' labels tell the rest."""
    settings = {key: value for key, value in _with_defaults(params).items() if key not in ("seed", "scale", "rank", "train")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def start_of(params, model):
    """The model that `model` was trained from: None for M0, M0 for M1."""
    return {"m0": None, "m1": "m0"}[model] if model in ("m0", "m1") else params["train"][model]["start"]


def lineage_of(params, model):
    """The models from M0 to this one, itself included."""
    start = start_of(params, model)
    return [*(lineage_of(params, start) if start else []), model]


def round_of(params, model):
    """The round in which `model` makes the data: 1 for M1, 2 for an M2, ... It equals the steps from M0."""
    return len(lineage_of(params, model)) - 1


def train_row(params, model):
    """The row of `train` that made a model, with the defaults of what it leaves out."""
    return {**_row_defaults(params), **params["train"][model]}


def label_of(params, model):
    """How reports call what made a model: its method, and what its row changes of the defaults. The models of one
    lineage share it, unless the start model was made in another way."""
    if model in ("m0", "m1"):
        return model.upper()
    label, start = _method_label(params, model), start_of(params, model)
    while start != "m1" and _method_label(params, start) == label:
        start = start_of(params, start)
    return label if start == "m1" else f"{label} from {start}"


def _method_label(params, model):
    row, defaults = train_row(params, model), _row_defaults(params)
    changes = [f"{key} {row[key]}" for key in ("C", *defaults) if row.get(key) != defaults.get(key)]
    return " ".join([row["method"].replace("cream", "CREAM").replace("srlm", "SRLM"), *changes]).replace("_", " ")


def models_of(params):
    """Every model of the lineage, in the order of their rounds."""
    return sorted(["m0", "m1", *params["train"]], key=lambda model: round_of(params, model))


def _row_defaults(params):
    return {"by": "reward", "against": "previous", **params["ranking"], "sft_weight": params["dpo"].get("sft_weight", 0.0)}


def _sentence(error):
    where = ".".join(map(str, error.absolute_path)) or "the file"
    unknown_key = error.validator == "additionalProperties" and "properties" in error.schema
    known = f"; the keys here are {', '.join(error.schema['properties'])}" if unknown_key else ""
    is_text = error.validator == "type" and error.validator_value == "number" and isinstance(error.instance, str)
    point = "; YAML takes 1e-6 for text: write 1.0e-6" if is_text else ""
    if error.validator == "pattern" and error.validator_value == NAME:
        point = ": a name is of small letters, digits and dashes, begins with a letter, and has at most 64 of them"
    return f"{where}: {error.message}{known}{point}"


def _scratch_problems(params):
    if params["model"]["base"] != "scratch":
        return []
    scratch, source, problems = params["model"].get("scratch"), params["data"]["source"], []
    if scratch is None:
        problems.append("model.scratch: say how large the model is that base: scratch makes, as in the default params.yaml")
    elif scratch["width"] % (2 * scratch["heads"]):
        problems.append(f"model.scratch.width: it must be a multiple of twice the heads, {2 * scratch['heads']}")
    elif params["sampling"]["engine"] == "vllm" and scratch["width"] < 32 * scratch["heads"]:
        problems.append("sampling.engine: vLLM has no kernels for heads of less than 32: take transformers, or a wider model.scratch")
    if params["model"].get("thinking"):
        problems.append("model.thinking: a model from scratch does not think: leave the key out")
    if source not in MADE:
        problems.append(f"data.source: a model from scratch is pretrained on one of {', '.join(MADE)}, not on {source}")
    return problems


def _lineage_problems(params):
    train, rank, problems = params["train"], params["rank"], []
    for model, row in train.items():
        start, method = row["start"], row["method"]
        if method not in METHODS:
            problems.append(f"train.{model}.method: there is no method {method}: name one of {', '.join(METHODS)}")
        elif ("C" in row) != (method == "fixed"):
            problems.append(f"train.{model}: the method fixed, and no other, takes its weight in the row, as C: 0.8")
        if start != "m1" and start not in train:
            problems.append(f"train.{model}.start: there is no model {start}: name m1 or a row of train")
        elif start not in rank:
            problems.append(f"train.{model}.start: {start} makes no pairs: give it a row under rank")
        elif _goes_round(train, model):
            problems.append(f"train.{model}.start: the rows start from each other in a circle: one must start from m1")
        else:
            problems += _ranker_problems(model, train_row(params, model), rank[start])
    if problems:
        return problems
    for policy, row in rank.items():
        if "reward_model" in row.get("rankers", []) and params["reward_model"] is None:
            problems.append(f"rank.{policy}.rankers: there is no reward model: say under reward_model which one to use")
        if policy != "m1" and policy not in train:
            problems.append(f"rank.{policy}: there is no model {policy}: name m1 or a row of train")
        elif row["previous"] not in {"m0", "m1", *train}:
            problems.append(
                f"rank.{policy}.previous: there is no model {row['previous']}: name m0, m1 or a row of train"
            )
        elif round_of(params, row["previous"]) >= round_of(params, policy):
            problems.append(f"rank.{policy}.previous: {row['previous']} is not from an earlier round than {policy}")
        elif round_of(params, policy) > params["data"]["rounds"]:
            problems.append(
                f"rank.{policy}: round {round_of(params, policy)} has no prompts: data.rounds is "
                f"{params['data']['rounds']}"
            )
    return problems


def _ranker_problems(model, row, ranked):
    """The rankers that a row of `train` names must have ranked its start model's responses, and be two."""
    by, against = row["by"], row["against"]
    known = [*ALWAYS, *ranked.get("rankers", [])]
    problems = [
        f"train.{model}.{key}: {ranker} does not rank {row['start']}: add it to rank.{row['start']}.rankers"
        for key, ranker in (("by", by), ("against", against))
        if ranker not in known
    ]
    if by == against:
        problems.append(f"train.{model}: {by} always agrees with itself: by and against must be two rankers")
    return problems


def _goes_round(train, model):
    seen = set()
    while model in train and model not in seen:
        seen.add(model)
        model = train[model]["start"]
    return model in seen
