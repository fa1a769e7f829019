"""notebooks/18_preference_accuracy.ipynb next to toy models, against plain forward passes; and the files it refuses."""

import json
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tiny_model import tiny_model

from cream.data.comparisons import read_preferences
from cream.data.errors import InputError
from cream.data.files import write_rows
from cream.models.loading import load_model, save_model
from cream.report.arena import win_rate

ROOT = Path(__file__).parents[1]
TEXTS = ["blue", "a long and winding answer", "no", "maybe so", "1 + 1 = 2", "<b>bold</b>", "yes, it is", "it is not so"]
# Four are length-matched (with the end token within a tenth of the longer): the last two of each subset.
PAIRS = [
    {"prompt": f"question {i}", "chosen": chosen, "rejected": rejected, "subset": "odd" if i % 2 else "<even>", "id": i}
    for i, (chosen, rejected) in enumerate(
        [(TEXTS[i], TEXTS[(3 * i + 1) % 8]) for i in range(8)] + [("left", "west"), ("up it goes", "down it is"), ("a b", "c d"), ("x", "y")]
    )
]
LONG = {"prompt": "why?", "chosen": "because " * 40, "rejected": "no", "subset": "odd"}


@pytest.fixture
def run(tmp_path):
    """A folder laid out like a run, without its models, and a function that runs the notebook there."""
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "profiles" / "test.yaml", tmp_path / "params.yaml")
    notebook = nbformat.read(ROOT / "notebooks" / "18_preference_accuracy.ipynb", as_version=4)

    def run(rows):
        write_rows(tmp_path / "data/preferences.jsonl", rows)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(f"import sys\nsys.path.insert(0, {str(ROOT)!r})"))
        where = {"metadata": {"path": str(tmp_path / "notebooks")}}
        NotebookClient(notebook, kernel_name="python3", resources=where).execute()
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        said = "".join(output.get("data", {}).get("text/html", "") for output in outputs)
        return json.loads((tmp_path / "results/preference_accuracy.json").read_text()), said

    return tmp_path, run


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


def test_it_agrees_with_plain_forward_passes(run, model, tokenizer):
    folder, run = run
    save_model(model, tokenizer, folder / "models/m0")
    save_model(model, tokenizer, folder / "models/cream-m2")  # the same: its reward is 0 everywhere
    other = tiny_model(len(tokenizer), seed=1)
    save_model(other, tokenizer, folder / "models/m1")
    found, said = run([*PAIRS, LONG])

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


def test_without_models_or_with_pairs_too_long_it_says_so(run, model, tokenizer):
    folder, run = run
    with pytest.raises(CellExecutionError, match="models/ holds no run: make one with `make repro`"):
        run(PAIRS)
    for name in ("m0", "m1"):
        save_model(model, tokenizer, folder / "models" / name)
    with pytest.raises(CellExecutionError, match="longer than the 256 tokens that the models read"):
        run([LONG])


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
    assert set(read_preferences(path).subset) == {"all"}
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
