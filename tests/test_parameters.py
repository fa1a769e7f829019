import copy
import math
from pathlib import Path

import pytest
import yaml

from cream.data.errors import InputError
from cream.pipeline.parameters import (
    label_of,
    lineage_of,
    load_parameters,
    models_of,
    round_of,
    settings_digest,
    start_of,
)

ROOT = Path(__file__).parents[1]
GOOD = {
    "seed": 1,
    "precision": "fp32",
    "logprob_precision": "fp32",
    "model": {"base": "embedded", "revision": None, "scratch": None, "warmup": None, "lora": None},
    "data": {"source": "sums", "seed_examples": 8, "prompts_per_round": 4, "rounds": 2, "test_questions": 4, "balanced": False},
    "sft": {"epochs": 1, "learning_rate": 1.0e-5, "batch_size": 8},
    "reward_model": None,
    "sampling": {"engine": "transformers", "responses": 5, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 16},
    "ranking": {"measure": "kendall", "first_round": "like_for_like", "noise": 0.0},
    "dpo": {"beta": 0.1, "sft_weight": 1.0, "learning_rate": 1.0e-6, "epochs": 1, "batch_size": 8},
    "evaluation": {"max_new_tokens": 16, "samples": 2},
    "scale": {"workers": 1, "launch": None},
    "rank": {"m1": {"previous": "m0"}, "cream-m2": {"previous": "m1"}},
    "train": {"cream-m2": {"start": "m1", "method": "cream"}, "cream-m3": {"start": "cream-m2", "method": "cream"}},
}


@pytest.fixture
def load(tmp_path):
    """Loads parameters that were written to a file; `changes` are {"a.b.c": value}, over GOOD."""

    def load_changed(changes):
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(changed(changes)))
        return load_parameters(tmp_path / "params.yaml")

    return load_changed


def changed(changes):
    params = copy.deepcopy(GOOD)
    for key, value in changes.items():
        *path, last = key.split(".")
        place = params
        for name in path:
            place = place[name]
        place[last] = value
    return params


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted(ROOT.glob("profiles/*.yaml"))], ids=lambda path: path.stem
)
def test_every_profile_is_right(path):
    assert load_parameters(path)["seed"] >= 0


def test_a_file_may_leave_out_what_has_a_default(tmp_path):
    params = copy.deepcopy(GOOD)
    del params["precision"], params["logprob_precision"], params["model"]["scratch"], params["dpo"]["sft_weight"], params["evaluation"]["samples"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    found = load_parameters(tmp_path / "params.yaml")
    assert found["precision"] == "auto" and found["logprob_precision"] == "fp32" and found["model"]["scratch"] is None
    assert found["dpo"]["sft_weight"] == 0 and found["evaluation"]["samples"] == 0  # the paper's


PRETRAINING = {"examples": 8, "wrong": 0.9, "learning_rate": 1.0e-3, "batch_size": 4}


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"model.scratch": None}, "model.scratch: say how large the model is"),
        ({"data.source": "benchmarks"}, "data.source: a model from scratch is pretrained on one of habit, sums, digits, not on benchmarks"),
        ({"model.scratch.width": 36}, "model.scratch.width: it must be a multiple of twice the heads, 8"),
        ({"model.scratch.pretraining.wrong": 1.5}, "model.scratch"),
        ({"sampling.engine": "vllm"}, "sampling.engine: vLLM has no kernels for heads of less than 32"),
        ({"model.thinking": True}, "model.thinking: a model from scratch does not think: leave the key out"),
    ],
)
def test_a_model_from_scratch_needs_its_size_and_its_questions(load, changes, problem):
    scratch = {"layers": 1, "width": 32, "heads": 4, "pretraining": dict(PRETRAINING)}
    good = {"model.base": "scratch", "model.scratch": scratch}
    load(good)
    with pytest.raises(ValueError, match=problem):
        load(good | changes)


def test_the_digest_of_the_settings_leaves_out_seed_place_and_lineage(load):
    digest = settings_digest(GOOD)
    same = {"seed": 7, "scale.workers": 2, "train.cream-m2": {"start": "m1", "method": "srlm"}}
    assert settings_digest(load(same)) == digest
    assert settings_digest(load({"dpo.beta": 0.2})) != digest != settings_digest(load({"ranking.measure": "spearman"}))
    short = copy.deepcopy(GOOD)
    del short["dpo"]["sft_weight"]
    assert settings_digest(short) == settings_digest(load({"dpo.sft_weight": 0.0}))  # a default is a value


def test_right_parameters_come_back_unchanged(load):
    assert load({}) == GOOD
    lora = {"r": 32, "alpha": 64, "dropout": 0.1}
    assert load({"model.lora": lora})["model"]["lora"] == lora


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": -1}, "seed: -1"),
        ({"sampling.responses": 1}, "sampling.responses: 1"),
        ({"sampling.top_p": 1.5}, "sampling.top_p: 1.5"),
        ({"sampling.temperature": 0}, "sampling.temperature: 0"),
        ({"sampling.engine": "telepathy"}, "sampling.engine: 'telepathy'"),
        ({"dpo.beta": -0.1}, "dpo.beta: -0.1"),
        ({"dpo.learning_rate": "1e-6"}, "dpo.learning_rate: '1e-6' .*write 1.0e-6"),  # what YAML 1.1 makes of 1e-6
        ({"dpo.epochs": True}, "dpo.epochs: True"),
        ({"sft.batch_size": 0}, "sft.batch_size: 0"),
        ({"sft.batchsize": 8}, "sft: Additional properties.*'batchsize'.*the keys here are .*batch_size"),
        ({"dop": {}}, "the file: Additional properties.*'dop'.*the keys here are .*dpo"),
        ({"model.revision": "main"}, "model.revision: 'main'"),
        ({"model.lora": {"r": 8}}, "model.lora: "),
        ({"model.warmup": {"epochs": 1}}, "model.warmup: "),
        ({"ranking.measure": "pearson"}, "ranking.measure: 'pearson'.*kendall"),
        ({"ranking.first_round": "none"}, "ranking.first_round: 'none'"),
        ({"train.cream-m2.method": "dpo"}, "train.cream-m2.method: there is no method dpo: name one of srlm, cream"),
        ({"train.cream-m2.method": "fixed"}, "train.cream-m2: the method fixed, and no other, takes its weight"),
        ({"train.cream-m2.C": 0.8}, "train.cream-m2: the method fixed, and no other, takes its weight"),
        ({"train.cream-m2.C": 1.2}, "train.cream-m2.C: 1.2"),
        ({"train.cream-m2.by": "previous"}, "train.cream-m2.by: 'previous'.*reward.*gold"),
        ({"train.cream-m2.by": "judge"}, "train.cream-m2.by: judge does not rank m1: add it to rank.m1.rankers"),
        ({"train.cream-m2.against": "judge"}, "train.cream-m2.against: judge does not rank m1"),
        ({"train.cream-m2.against": "reward"}, "train.cream-m2: reward always agrees with itself"),
        ({"train.cream-m2.measure": "pearson"}, "train.cream-m2.measure: 'pearson'.*kendall"),
        ({"rank.m1.rankers": ["oracle"]}, r"rank.m1.rankers.0: 'oracle'.*judge"),
        ({"rank.m1.rankers": ["gold", "gold"]}, "rank.m1.rankers: "),
        ({"rank.m1.rankers": ["reward_model"]}, "rank.m1.rankers: there is no reward model: .*reward_model"),
        ({"reward_model": "trained"}, "reward_model: 'trained'"),
        ({"reward_model": {"base": "trained"}}, "reward_model: 'questions' is a required property"),
        ({"reward_model": {"base": "a/b", "revision": "main"}}, "reward_model.revision: 'main'"),
        ({"reward_model": {"base": "a/b", "revision": None, "epochs": 1}}, "reward_model: .*'epochs'"),
        ({"train.m1": {"start": "m0", "method": "cream"}}, "train: "),
        ({"train.reward": {"start": "m1", "method": "cream"}}, "train: "),
        ({"train.Cream M4": {"start": "m1", "method": "cream"}}, "train: 'Cream M4'"),
        ({"train.1e3": {"start": "m1", "method": "cream"}}, "train: '1e3' .*: a name is of small letters"),
        *[
            ({"train": {name: {"start": "m1", "method": "cream"}}}, "train: ")
            for name in ("fixed-0.8", "a/b", "..", "a b", "-a", "a:b", "a@b", "a\n", "", "é", "x" * 65, True, 7, None)
        ],
        ({"train": {}}, "train: "),
        ({"train.cream-m3.start": "cream-m9"}, "train.cream-m3.start: there is no model cream-m9"),
        ({"train.cream-m3.start": "m0"}, "train.cream-m3.start: there is no model m0"),
        ({"rank": {"m1": {"previous": "m0"}}}, "train.cream-m3.start: cream-m2 makes no pairs"),
        ({"train.cream-m2.start": "cream-m2"}, "train.cream-m2.start: .*circle"),
        (
            {"train.cream-m2.start": "cream-m3", "rank.cream-m3": {"previous": "m1"}},
            "train.cream-m2.start: .*circle[^$]*train.cream-m3.start: .*circle",
        ),
        ({"rank.srlm-m2": {"previous": "m1"}}, "rank.srlm-m2: there is no model srlm-m2"),
        ({"rank.m0": {"previous": "m1"}}, "rank.m0: there is no model m0"),
        ({"rank.cream-m2.previous": "m9"}, "rank.cream-m2.previous: there is no model m9"),
        ({"rank.m1.previous": "m1"}, "rank.m1.previous: m1 is not from an earlier round"),
        ({"rank.m1.previous": "cream-m2"}, "rank.m1.previous: cream-m2 is not from an earlier round"),
        ({"dpo.learning_rate": math.nan}, "dpo.learning_rate: nan"),
        ({"sampling.responses": 5.0}, "sampling.responses: 5.0"),
        ({"rank.cream-m3": {"previous": "cream-m2"}}, "rank.cream-m3: round 3 has no prompts: data.rounds is 2"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(load, changes, message):
    with pytest.raises(ValueError, match=f"params.yaml: {message}"):
        load(changes)


def test_a_missing_key_is_named(load):
    without_beta = {key: value for key, value in GOOD["dpo"].items() if key != "beta"}
    with pytest.raises(ValueError, match="params.yaml: dpo: 'beta' is a required property"):
        load({"dpo": without_beta})


def test_all_that_is_wrong_is_listed_at_once(load):
    with pytest.raises(ValueError) as error:
        load({"seed": "one", "dpo.beta": 0, "sampling.responses": 1, "train.cream-m2.method": 1})
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    for key in ("seed: ", "dpo.beta: ", "sampling.responses: ", "train.cream-m2.method: "):
        assert sum(line.startswith(f"params.yaml: {key}") for line in lines) == 1


def test_all_that_is_wrong_in_the_lineage_is_listed_at_once(load):
    with pytest.raises(ValueError) as error:
        load({"rank.cream-m2.previous": "m9", "rank.m7": {"previous": "m1"}})
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == ["rank.cream-m2.previous", "rank.m7"]


@pytest.mark.parametrize("text", ["seed: [1, 2", "seed: 1\n\tmodel: x", "a: b: c"])
def test_a_file_that_is_no_yaml_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"params\.yaml is not YAML: .*line \d") as error:
        load_parameters(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "just words", "- a\n- list"])
def test_a_file_without_keys_is_refused(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ValueError, match="the file: .* is not of type 'object'"):
        load_parameters(tmp_path / "params.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"params\.yaml does not exist: .*profiles/"):
        load_parameters(tmp_path / "params.yaml")


def test_starts_and_rounds_follow_the_lineage():
    assert [start_of(GOOD, model) for model in ("m0", "m1", "cream-m2", "cream-m3")] == [None, "m0", "m1", "cream-m2"]
    assert lineage_of(GOOD, "m0") == ["m0"]
    assert lineage_of(GOOD, "cream-m3") == ["m0", "m1", "cream-m2", "cream-m3"]
    assert [round_of(GOOD, model) for model in ("m0", "m1", "cream-m2", "cream-m3")] == [0, 1, 2, 3]


def test_labels_say_what_made_a_model():
    params = changed(
        {
            "train.gold-m2": {"start": "m1", "method": "srlm", "by": "gold"},
            "train.x-m2": {"start": "m1", "method": "cream-per-prompt", "measure": "top_order"},
            "train.fixed-m2": {"start": "m1", "method": "fixed", "C": 0.8},
            "train.plain-m2": {"start": "m1", "method": "srlm", "by": "reward", "measure": "kendall"},
            "train.mixed-m3": {"start": "cream-m2", "method": "srlm"},
        }
    )
    assert [label_of(params, model) for model in ("m0", "cream-m3", *list(params["train"])[2:])] == [
        "M0",
        "CREAM",
        "SRLM by gold",
        "CREAM-per-prompt measure top order",
        "fixed C 0.8",
        "SRLM",  # what a row says again of the defaults is left out
        "SRLM from cream-m2",
    ]


def test_models_come_in_the_order_of_their_rounds():
    train = {"b-m3": {"start": "b-m2"}, "a-m2": {"start": "m1"}, "b-m2": {"start": "m1"}}
    assert models_of({"train": train}) == ["m0", "m1", "a-m2", "b-m2", "b-m3"]


@pytest.mark.parametrize("twice", ["seed: 1\nseed: 2\n", "train:\n  a-m2: {start: m1}\n  a-m2: {start: m1}\n"])
def test_a_key_that_is_given_twice_is_refused(tmp_path, twice):
    (tmp_path / "params.yaml").write_text(twice)
    key = twice.split(":")[-2].split()[-1] if "train" not in twice else "a-m2"
    with pytest.raises(InputError, match=rf"params\.yaml is not YAML: the key {key} is given twice .*line \d"):
        load_parameters(tmp_path / "params.yaml")


def test_a_notebook_that_runs_in_the_wrong_folder_is_told_so(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "params.yaml").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="notebooks run in the folder notebooks/: give papermill --cwd notebooks"):
        load_parameters("../params.yaml")
    (tmp_path / "here" / "params.yaml").rename(tmp_path / "params.yaml")
    with pytest.raises(InputError, match="params.yaml is in the folder above: run this there"):
        load_parameters("params.yaml")
    (tmp_path / "params.yaml").unlink()
    with pytest.raises(InputError, match="../params.yaml does not exist: copy a file of profiles/ there"):
        load_parameters("../params.yaml")


def test_parameters_that_are_not_utf_8_are_named(tmp_path):
    (tmp_path / "params.yaml").write_bytes("seed: é".encode("latin-1"))
    with pytest.raises(InputError, match="params.yaml is not UTF-8 text"):
        load_parameters(tmp_path / "params.yaml")
