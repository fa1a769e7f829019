"""The ways that benchmarks/speed.py times: they must give the same results, or the times mean nothing."""

import json
import pickle
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cream.models.loading import save_model

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu  # noqa: E402
import speed  # noqa: E402

PROMPTS = [[5, 6, 7, 8], [9], [10, 11, 12], [13, 14], [15, 16], [17], [18, 19, 20], [21]] * 2


@pytest.fixture
def folder(tmp_path, model, tokenizer):
    save_model(model, tokenizer, tmp_path / "m1")
    return tmp_path / "m1"


@pytest.fixture
def responses():
    torch.manual_seed(0)
    lengths = torch.randint(1, 9, (len(PROMPTS), speed.N)).tolist()
    return [[torch.randint(4, 90, (length,)).tolist() for length in row] for row in lengths]


def test_all_ways_score_alike(folder, responses):
    pairs = speed._pairs(PROMPTS, responses)
    official, trl, ours = (
        way(folder, pairs)()
        for way in (speed.scoring_by_the_official_way, speed.scoring_by_trl, speed.scoring_by_cream)
    )
    assert ours == pytest.approx(official, abs=1e-3)
    left_out = [i for i, value in enumerate(trl) if value is None]
    assert left_out == list(range(4, len(pairs), 5))  # two at a time, of five
    assert [x for x in trl if x is not None] == pytest.approx(
        [x for i, x in enumerate(official) if i % 5 != 4], abs=1e-3
    )


def test_all_ways_train_alike_in_every_turn(folder, responses, monkeypatch):
    monkeypatch.setitem(speed.TRAINING, "learning_rate", 1e-3)  # so that a step shows in the toy model's loss
    monkeypatch.setenv("CREAM_BF16", "1")
    pairs = speed._preferences(folder, PROMPTS, responses)
    works = {way: load(folder, pairs) for way, load in speed._ways("training").items()}
    losses = {way: work() for way, work in works.items()}
    ours = losses["cream"]
    assert len(ours) == 8 and ours[0] == pytest.approx(0.6931, abs=1e-4)
    assert max(abs(loss - ours[0]) for loss in ours) > 0.02
    for way in ("TRL, reference model", "TRL, precomputed"):
        assert losses[way] == pytest.approx(ours, abs=1e-4), way
    assert losses["cream, bf16"] == pytest.approx(ours, abs=0.1) and losses["cream, bf16"] != ours
    first = speed.in_order(pairs, 1, speed.TRAINING["batch_size"], seed=0)[: speed.TRAINING["batch_size"]]
    nll = [-pair["ref_chosen_logps"] / len(pair["chosen_ids"]) for pair in first]
    assert losses["cream, NLL term"][0] == pytest.approx(ours[0] + sum(nll) / len(nll), abs=1e-4)
    assert works["cream"]() == ours  # the next turn begins with the same weights


def test_generate_counts_an_end_token_once(folder):
    lengths = speed.sampling_by_generate(folder, dict(prompts=PROMPTS, responses=3, max_new_tokens=6, **speed.SAMPLING))()
    assert len(lengths) == len(PROMPTS) * 3
    assert all(1 <= length <= 6 for length in lengths)


def count_turns(first):
    """A way whose result grows by one a turn."""
    turns = iter(range(first, 100))
    return lambda: [next(turns)]


@pytest.fixture
def forks(monkeypatch):
    """The processes of the ways are forks of this one, which need not import torch anew."""
    monkeypatch.setattr(speed, "get_context", lambda _: get_context("fork"))


def test_ways_take_turns_in_processes_that_load_once(forks):
    found = speed.measure({"a": partial(count_turns, 0), "b": partial(count_turns, 50)}, 2, "test")
    assert [found[way]["result"] for way in "ab"] == [[0], [50]]  # of the turn that warms up
    assert [len(found[way]["seconds"]) for way in "ab"] == [2, 2]


@pytest.mark.parametrize("what", ["sampling", "scoring", "training"])
def test_a_way_can_be_handed_to_a_process_of_its_own(what):
    assert pickle.loads(pickle.dumps(speed._ways(what))).keys() == speed._ways(what).keys()


def test_what_goes_wrong_in_a_way_is_raised(forks):
    with pytest.raises(StopIteration):
        speed.measure({"a": partial(count_turns, 100)}, 1, "test")


def test_operations_are_two_a_weight_and_token(model):
    layers = sum(weight.numel() for weight in model.model.layers.parameters())
    head = model.lm_head.weight.numel()
    pairs = [([5, 6, 7], [8, 9]), ([5, 6, 7], [8, 9]), ([5, 6, 7], [4])]  # three prompt tokens, three response tokens
    assert speed._operations(model, pairs) == 2 * 6 * layers + 2 * 3 * head


@pytest.mark.parametrize(("width", "heads", "size"), [(1 / 3, 1, 1 / 2), (2, 4, 2)])
def test_a_resized_model_has_whole_heads(folder, tmp_path, model, width, heads, size):
    resized = AutoModelForCausalLM.from_pretrained(speed._resized(folder, width, tmp_path / "other"))
    assert resized.config.num_key_value_heads == heads
    assert resized.config.hidden_size == size * model.config.hidden_size
    assert resized.config.num_hidden_layers == model.config.num_hidden_layers
    assert resized(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def test_growth_changes_one_thing_at_a_time(folder, responses, monkeypatch):
    seen = []

    def measure(ways, repeats, what):
        seen.append((what.split(",")[0], {way: work.args for way, work in ways.items()}))
        return {way: {"seconds": [1.0], "result": []} for way in ways}

    monkeypatch.setattr(speed, "measure", measure)
    row = speed._growth(folder, PROMPTS, responses, n=3, count=2, longest=4)
    assert (row["N"], row["prompts"], row["longest response"]) == (3, 2, 4)
    assert [what for what, _ in seen] == ["sampling", "scoring"]
    assert [list(ways) for _, ways in seen] == [["generate", "cream"], ["official", "cream"]]
    _, pairs = seen[1][1]["cream"]
    assert pairs == [(prompt, tokens[:4]) for prompt, rows in zip(PROMPTS[:2], responses) for tokens in rows[:3]]


def test_the_gpu_benchmark_runs_through_on_models_of_no_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the trainers write to .cache
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--only", "card", "llama 8B", "--out", "gpu.json"])
    gpu.main()
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["precision"] for row in rows if row["what"] == "scoring"] == ["fp32", "tf32", "bf16"]
    margins = [abs(row["first_margin"]) for row in rows if "training" in row["what"]]
    assert len(margins) == 3 and max(margins) < 1e-3
    least = next(row for row in rows if row["what"] == "scoring")
    assert least["tokens_per_s"] * least["seconds"] == pytest.approx(2 * gpu.N * (5 + 4))  # prompts, responses, their tokens
