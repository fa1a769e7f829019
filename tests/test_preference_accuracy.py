"""notebooks/18_preference_accuracy.ipynb next to toy models, against plain forward passes; and the files it refuses."""

import json
import shutil

import pandas as pd
import pytest
import torch
from tiny_model import tiny_model

from cream.data.comparisons import read_preferences
from cream.data.errors import InputError
from cream.data.files import write_rows
from cream.models.loading import load_model, save_model
from cream.report.arena import win_rate

NOTEBOOK = "18_preference_accuracy"
TEXTS = ["blue", "a long and winding answer", "no", "maybe so", "1 + 1 = 2", "<b>bold</b>", "yes, it is", "it is not so"]
# Four are length-matched (with the end token within a tenth of the longer): the last two of each subset.
PAIRS = [
    {"prompt": f"question {i}", "chosen": chosen, "rejected": rejected, "subset": "odd" if i % 2 else "<even>", "id": i}
    for i, (chosen, rejected) in enumerate(
        [(TEXTS[i], TEXTS[(3 * i + 1) % 8]) for i in range(8)] + [("left", "west"), ("up it goes", "down it is"), ("a b", "c d"), ("x", "y")]
    )
]
LONG = {"prompt": "why?", "chosen": "because " * 40, "rejected": "no", "subset": "odd"}


def naive(folder, tokenizer, pair):
    """log p of the chosen and of the rejected response, one plain forward pass each."""
    model, sums = load_model(folder).cpu(), []
    prompt = tokenizer.encode(f"<|user|>{pair['prompt']}<|end|><|assistant|>")
    for text in (pair["chosen"], pair["rejected"]):
        ids = torch.tensor([[*prompt, *tokenizer.encode(text), 0]])
        with torch.no_grad():
            logps = model(ids).logits[0].log_softmax(-1)
        sums.append(sum(logps[i - 1, ids[0, i]].item() for i in range(len(prompt), ids.shape[1])))
    return sums


def test_it_agrees_with_plain_forward_passes(tmp_path, run_stage, model, tokenizer):
    folder = tmp_path
    save_model(model, tokenizer, folder / "models/m0")
    save_model(model, tokenizer, folder / "models/cream-m2")  # the same: its reward is 0 everywhere
    other = tiny_model(len(tokenizer), seed=1)
    save_model(other, tokenizer, folder / "models/m1")
    write_rows(folder / "pairs.jsonl", [*PAIRS, LONG])
    done, said = run_stage(NOTEBOOK, file="pairs.jsonl")
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "results/preference_accuracy.json").read_text())

    m0, m1 = ([naive(folder / "models" / name, tokenizer, pair) for pair in PAIRS] for name in ("m0", "m1"))
    reward = [(a - c) > (b - d) for (a, b), (c, d) in zip(m1, m0)]
    log_p = [a > b for a, b in m1]
    assert len(set(reward)) == len(set(log_p)) == 2

    def expected(right):
        return {name: pytest.approx(x, abs=1e-4) for name, x in zip(("value", "low", "high"), win_rate(right))}

    matched = [8, 9, 10, 11]
    assert (found["pairs"], found["too_long"], found["length_matched_pairs"]) == (12, 1, 4)
    assert found["reward, all"] == {"m1": expected(reward), "cream-m2": expected([0.5] * 12)}
    assert found["reward, length-matched"]["m1"] == expected([reward[i] for i in matched])
    assert found["log p, all"]["m1"] == expected(log_p) and list(found["log p, all"]) == ["m0", "m1", "cream-m2"]
    assert found["log p, all"]["m0"] == found["log p, all"]["cream-m2"]
    assert found["subsets"]["odd"]["pairs"] == 6 and found["subsets"]["odd"]["reward"]["m1"] == expected(reward[1::2])
    longer = [(len(pair["chosen"]) > len(pair["rejected"])) + (len(pair["chosen"]) == len(pair["rejected"])) / 2 for pair in PAIRS]
    assert found["longer_is_chosen"] == round(sum(longer) / 12, 4)
    assert "12 pairs" in said and "1 more are left out" in said and "&lt;even&gt; (6)" in said and "<even>" not in said
    best = max(("m1", "cream-m2"), key=lambda model: found["reward, all"][model]["value"])
    assert f"the highest of all models is {best}'s, with" in said
    shutil.rmtree(folder / "models/cream-m2")
    done, said = run_stage(NOTEBOOK, file="pairs.jsonl")
    assert done.returncode == 0 and "12 pairs" in said and "highest" not in said


def test_without_models_or_with_pairs_too_long_it_says_so(tmp_path, run_stage, model, tokenizer):
    write_rows(tmp_path / "pairs.jsonl", [LONG])
    done, _ = run_stage(NOTEBOOK, file="pairs.jsonl")
    assert "models/ holds no run: make one with `make repro`" in done.stderr
    for name in ("m0", "m1"):
        save_model(model, tokenizer, tmp_path / "models" / name)
    done, _ = run_stage(NOTEBOOK, file="pairs.jsonl")
    assert "longer than the 256 tokens that the models read" in done.stderr


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_of_pairs_is_read_with_its_subsets(tmp_path, kind):
    path = tmp_path / f"pairs.{kind}"

    def write(rows):
        write_rows(path, rows) if kind == "jsonl" else pd.DataFrame(rows).to_parquet(path)

    write(PAIRS)
    table = read_preferences(path)
    assert list(table) == ["prompt", "chosen", "rejected", "subset"]
    assert table.to_dict("records") == [{column: pair[column] for column in table} for pair in PAIRS]
    write([{column: pair[column] for column in ("prompt", "chosen", "rejected")} for pair in PAIRS])
    assert set(read_preferences(path).subset) == {"no subset"}
    number = {"jsonl": "line 2", "parquet": "row 2"}[kind]
    for bad in ({"chosen": None}, {"chosen": ""}, {"prompt": None}):
        write([PAIRS[0], {**PAIRS[1], **bad}])
        with pytest.raises(InputError, match=f"pairs.{kind}, {number}: {next(iter(bad))} must be text"):
            read_preferences(path)


def test_files_that_hold_no_pairs_are_refused(tmp_path):
    write_rows(tmp_path / "a.jsonl", [])
    (tmp_path / "b.parquet").write_text("not it")
    (tmp_path / "c.jsonl").write_text('{"prompt": "q", "chosen": [1], "rejected": "b"}\n')
    for name, reason in {"a.jsonl": "no rows", "b.parquet": "not a Parquet file", "c.jsonl": "line 1: chosen", "d": "no file"}.items():
        with pytest.raises(InputError, match=reason):
            read_preferences(tmp_path / name)
