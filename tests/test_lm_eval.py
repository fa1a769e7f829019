"""notebooks/13_lm_eval.ipynb, beside a toy model and a few questions, against a loop of plain forward passes."""

import json
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from peft import LoraConfig, get_peft_model

from cream.data.files import write_rows
from cream.models.loading import load_model, load_tokenizer, save_model

ROOT = Path(__file__).parents[1]
ROWS = [
    {"id": "1", "task": "animals", "question": "Which one barks?", "choices": ["a cat", "a dog"], "answer": "B"},
    {"id": "2", "task": "animals", "question": "Which one flies?", "choices": ["a crow", "cow", "ant"], "answer": "A"},
    {"id": "3", "task": "animals", "question": "Which one swims?", "choices": ["hen", "a trout", "cat"], "answer": "B"},
    {"id": "4", "task": "sky", "question": "What shines at noon?", "choices": ["the sun", "a star"], "answer": "a"},
    {"id": "5", "task": "sky", "question": "What falls?", "choices": ["rain", "fog", "sky", "ice"], "answer": "A"},
    {"id": "6", "task": "sums", "question": "What is 2 + 3?", "answer": "5"},
]
MISSING = "lm-eval is not installed: pip install -e .[eval]"
CORRECT = [True, False, True, True, False, True]


@pytest.fixture
def run(tmp_path):
    """A folder laid out like a run, without its models, and a function that runs the notebook there."""
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.read(ROOT / "notebooks" / "13_lm_eval.ipynb", as_version=4)

    def run(rows, before=""):
        write_rows(tmp_path / "data/splits/test.jsonl", rows)
        answers = [{"id": row["id"], "task": row["task"], "correct": right} for row, right in zip(rows, CORRECT)]
        write_rows(tmp_path / "data/answers/m1.jsonl", answers)
        path = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        notebook.cells.insert(0, nbformat.v4.new_code_cell(path + before))
        shown = "import json\nprint(json.dumps([table.to_dict('records') for table in (accuracy, check)]))"
        notebook.cells.append(nbformat.v4.new_code_cell(shown))
        where = {"metadata": {"path": str(tmp_path / "notebooks")}}
        NotebookClient(notebook, kernel_name="python3", resources=where).execute()
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        said = "".join(output.get("data", {}).get("text/markdown", "") for output in outputs)
        return *json.loads(outputs[-1].text), said

    return tmp_path, run


def naive(folder, task):
    """The share of right picks, by the log-likelihood and by it over the option's characters; one pass an option."""
    model, tokenizer = load_model(folder / "m1").cpu(), load_tokenizer(folder / "m1")
    right = []
    for row in [row for row in ROWS if row["task"] == task]:
        prompt = tokenizer.encode(f"Question: {row['question']}\nAnswer:")
        sums = []
        for choice in row["choices"]:
            ids = tokenizer.encode(f"Question: {row['question']}\nAnswer: {choice}")
            with torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(logprobs[i - 1, ids[i]].item() for i in range(len(prompt), len(ids))))
        known = "ABCD".index(row["answer"].upper())
        per_character = [value / len(choice) for value, choice in zip(sums, row["choices"])]
        right.append([values.index(max(values)) == known for values in (sums, per_character)])
    return [sum(each) / len(each) for each in zip(*right)]


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_it_agrees_with_plain_forward_passes(run, model, tokenizer, adapter):
    pytest.importorskip("lm_eval", reason=MISSING)
    folder, run = run
    save_model(model, tokenizer, folder / "models" / "m0")
    if adapter:  # far from its start, so that an adapter left out would show
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(load_model(folder / "models" / "m0").cpu(), config)
    save_model(model, tokenizer, folder / "models" / "m1")

    accuracy, check, said = run(ROWS)
    assert "5 of the 6 test questions are multiple-choice." in said
    expected = {
        "animals": [*naive(folder / "models", "animals"), 2 / 3],
        "sky": [*naive(folder / "models", "sky"), 1 / 2],
    }
    measured = {(row["task"], row["protocol"]): row["accuracy"] for row in accuracy}
    assert measured == {
        (task, protocol): pytest.approx(value)
        for task, values in expected.items()
        for protocol, value in zip(("acc", "acc_norm", "written"), values)
    }
    assert [row["chance"] for row in accuracy] == pytest.approx([(1 / 2 + 1 / 3 + 1 / 3) / 3] * 3 + [3 / 8] * 3)
    assert [(row["options"], row["same pick"]) for row in check] == [(8, "3 of 3"), (6, "2 of 2")]
    assert all(row["largest difference (nats)"] < 1e-4 for row in check)


def test_without_multiple_choice_rows_it_says_so(run, model, tokenizer):
    pytest.importorskip("lm_eval", reason=MISSING)
    folder, run = run
    save_model(model, tokenizer, folder / "models" / "m1")
    accuracy, check, said = run(ROWS[-1:])
    assert "0 of the 1 test questions are multiple-choice. So there is nothing to compare" in said
    assert accuracy == check == []


def test_without_lm_eval_it_says_how_to_install_it(run):
    _, run = run
    with pytest.raises(CellExecutionError) as error:
        run(ROWS, before="sys.modules['lm_eval'] = None")
    assert error.value.ename == "InputError"
    assert error.value.evalue.startswith("this page needs lm-eval: run `pip install -e .[eval]`")
