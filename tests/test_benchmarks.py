"""The paper's data sets, in the columns and folders of the Hub, with invented rows."""

import io
import json
from pathlib import Path

import nbformat
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from local_hub import local_hub, run_with_hub
from nbclient import NotebookClient

from cream.data.answers import is_correct
from cream.data.benchmarks import REVISIONS, TASKS, read_benchmarks
from cream.data.errors import InputError
from cream.data.files import read_rows, write_rows
from cream.data.rows import read_source, user_message

ROOT = Path(__file__).parents[1]


def arc(id, question, texts, labels, key):
    return {"id": id, "question": question, "choices": {"text": texts, "label": labels}, "answerKey": key}


def openbook(id, stem, texts, key):
    return {"id": id, "question_stem": stem, "choices": {"text": texts, "label": list("ABCD")}, "answerKey": key}


def siqa(context, question, a, b, c, label):
    return {"context": context, "question": question, "answerA": a, "answerB": b, "answerC": c, "label": label}


def message(id, parent, role, text, lang="en", rank=None, deleted=False):
    return {
        "message_id": id,
        "parent_id": parent,
        "text": text,
        "role": role,
        "lang": lang,
        "rank": rank,
        "deleted": deleted,
        "message_tree_id": "tree",
        "tree_state": "ready_for_export",
    }


FILES = {
    "allenai/ai2_arc/ARC-Easy/train-00000-of-00001.parquet": [
        arc("Q1", "Which one flies?", ["a stone", "a bird", "a fish"], list("ABC"), "B"),
        arc("Q2", "Which is the largest?", ["mouse", "cat", "cow", "whale", "ant"], list("12345"), "4"),
    ],
    "allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet": [
        arc("Q3", "Which one melts?", ["ice", "air"], list("AB"), "A")
    ],
    "allenai/ai2_arc/ARC-Challenge/train-00000-of-00001.parquet": [
        arc("Q4", "Which is a gas?", ["iron", "wood", "salt", "glue", "steam."], list("ABCDE"), "E")
    ],
    "allenai/ai2_arc/ARC-Challenge/test-00000-of-00001.parquet": [
        arc("Q5", "Which conducts?", ["wood", "copper"], list("12"), "2")
    ],
    "allenai/openbookqa/main/train-00000-of-00001.parquet": [
        openbook("7-1", "The moon is", ["a lamp", "a rock", "a cloud", "a fire"], "B ")
    ],
    "allenai/openbookqa/main/test-00000-of-00001.parquet": [
        openbook("8-1", "Rain comes from", ["clouds", "stones", "roots", "sand"], "A")
    ],
    "lighteval/siqa/data/train-00000-of-00001-da17dfc1120ed1ee.parquet": [
        siqa("Kim baked a cake.", "Why?", "to eat it", "to sell a car", "to sleep", "1")
    ],
    "lighteval/siqa/data/validation-00000-of-00001-90bb85eab85fcfa8.parquet": [
        siqa("Lee fell.", "How is Lee?", "glad", "hurt", "rich", "2"),
        siqa("Lee fell.", "How is Lee?", "glad", "hurt", "rich", "2"),
    ],
    "openai/gsm8k/main/train-00000-of-00001.parquet": [
        {"question": "Ann has 2 bags of 540 nuts. How many nuts?", "answer": "She has 2*540=<<2*540=1080>>1080.\n#### 1,080"}
    ],
    "openai/gsm8k/main/test-00000-of-00001.parquet": [{"question": "Half of 9 less 6?", "answer": "It is <<9/2-6=-1.5>>-1.5.\n#### -1.5"}],
    "OpenAssistant/oasst1/data/train-00000-of-00001-b42a775f407cee45.parquet": [
        message("p1", None, "prompter", "What is tea?"),
        message("a1", "p1", "assistant", "A plant.", rank=1),
        message("a2", "p1", "assistant", "A drink made of leaves.", rank=0),
        message("a3", "p1", "assistant", "Nothing.", rank=2),
        message("p2", "a2", "prompter", "And coffee?"),
        message("a4", "p2", "assistant", "Another drink.", rank=0),
        message("p3", None, "prompter", "¿Qué es el té?", lang="es"),
        message("a5", "p3", "assistant", "Una bebida.", lang="es", rank=0),
        message("p4", None, "prompter", "Name a colour."),
        message("a6", "p4", "assistant", "Green, but deleted.", rank=0, deleted=True),
        message("a7", "p4", "assistant", "Blue."),
        message("p5", None, "prompter", "Nobody answered this."),
    ],
}  # fmt: skip


def parquet(rows):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Copies of the repositories, laid out as on the Hub."""
    for path, rows in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(parquet(rows))
    return tmp_path


def by_task(rows):
    return {task: [row for row in rows if row["task"] == task] for task in (*TASKS, "oasst1")}


def test_questions_options_and_answers_come_from_the_columns_of_the_hub(folder):
    rows = read_benchmarks(folder)
    prompts, test = by_task(rows["prompts"]), by_task(rows["test"])
    assert [(row["answer"], row["choices"][1]) for row in prompts["arc-easy"]] == [("B", "a bird"), ("D", "cat")]
    assert prompts["arc-challenge"][0]["answer"] == "E"
    assert prompts["openbookqa"][0] | {"response": None} == {
        "id": "openbookqa-train-00000", "task": "openbookqa", "question": "The moon is",
        "choices": ["a lamp", "a rock", "a cloud", "a fire"], "answer": "B", "response": None,
    }  # fmt: skip
    assert prompts["siqa"][0]["question"] == "Kim baked a cake. Why?"
    assert [row["answer"] for row in test["siqa"]] == ["B", "B"]  # the test set stays as it was published
    assert prompts["gsm8k"][0]["answer"] == "1080" and test["gsm8k"][0]["answer"] == "-1.5"
    assert {task: len(found) for task, found in test.items()} == {
        "arc-easy": 1, "arc-challenge": 1, "openbookqa": 1, "siqa": 2, "gsm8k": 1, "oasst1": 0
    }  # fmt: skip


def test_train_questions_are_worked_and_end_in_their_answer(folder):
    for row in read_benchmarks(folder)["prompts"]:
        if row["answer"] is not None:
            assert is_correct(row["response"], row["answer"], row.get("choices"))
    gsm8k = by_task(read_benchmarks(folder)["prompts"])["gsm8k"][0]
    assert gsm8k["response"] == "She has 2*540=1080.\nAnswer: 1080"


def test_no_test_question_brings_its_solution(folder):
    assert not [row for row in read_benchmarks(folder)["test"] if "response" in row]


def test_chat_is_the_first_turn_in_english_with_its_best_reply(folder):
    seed = read_benchmarks(folder)["seed"]
    assert [(row["id"], row["question"], row["response"]) for row in seed] == [
        ("oasst1-p1", "What is tea?", "A drink made of leaves."),
        ("oasst1-p4", "Name a colour.", "Blue."),
    ]
    assert user_message(seed[0]) == "What is tea?"  # no answer is known, so none is asked for


def test_ids_are_unique(folder):
    rows = read_benchmarks(folder)
    ids = [row["id"] for row in rows["prompts"] + rows["test"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "jsonl.gz"])
def test_a_file_a_split_does_as_well(folder, tmp_path, ending):
    import pandas as pd

    flat = tmp_path / "flat"
    flat.mkdir()
    for path, rows in FILES.items():
        owner, name, subfolder, file = path.split("/")
        place = f"{owner}/{name}", subfolder
        task = next((task for task, (*where, _) in TASKS.items() if tuple(where) == place), "oasst1")
        target = flat / f"{task}-{file.partition('-')[0]}.{ending}"
        if ending == "parquet":
            target.write_bytes(parquet(rows))
        else:
            pd.DataFrame(rows).to_json(target, orient="records", lines=True)
    assert read_source(str(flat)) == read_benchmarks(folder)


def test_rows_that_are_in_our_own_form_are_taken_as_they_are(tmp_path):
    choice = {"stem": "Which one flies?", "question": "Which one flies?\nA. a stone\nB. a bird", "choices": ["a stone", "a bird"], "answer": "B"}  # fmt: skip
    number = {"stem": "What is 1 + 1?", "question": "What is 1 + 1?", "choices": None, "answer": "2", "solution": "It is 1+1=<<1+1=2>>2.\n#### 2"}  # fmt: skip
    for task, (_, _, split) in TASKS.items():
        for name in ("train", split):
            row = number if task == "gsm8k" else choice
            (tmp_path / f"{task}-{name}.jsonl").write_text(json.dumps(row) + "\n")
    chat = {"id": "1", "prompt": "Hi", "response": "Hello."}
    (tmp_path / "sft-oasst1-train.jsonl").write_text(json.dumps(chat) + "\n")
    rows = by_task(read_source(str(tmp_path))["prompts"])
    assert rows["arc-easy"][0]["question"] == "Which one flies?" and rows["arc-easy"][0]["answer"] == "B"
    assert rows["gsm8k"][0]["response"] == "It is 1+1=2.\nAnswer: 2"
    assert rows["oasst1"][0]["response"] == "Hello."


def test_a_missing_split_is_named(folder):
    next(folder.glob("openai/gsm8k/main/test-*")).unlink()
    with pytest.raises(ValueError, match=r"holds neither gsm8k-test\.parquet or \.jsonl nor a copy of openai/gsm8k"):
        read_benchmarks(folder)


def test_a_broken_file_is_named(folder):
    next(folder.glob("openai/gsm8k/main/test-*")).write_bytes(b"PAR1 not parquet")
    with pytest.raises(ValueError, match=r"gsm8k/main/test-00000-of-00001\.parquet cannot be read .*copy it again"):
        read_benchmarks(folder)


def test_a_file_without_rows_is_named(folder):
    next(folder.glob("openai/gsm8k/main/test-*")).unlink()
    (folder / "gsm8k-test.jsonl").write_text("")
    with pytest.raises(InputError, match=r"gsm8k-test\.jsonl has no rows: copy it again"):
        read_benchmarks(folder)


@pytest.mark.parametrize("number, key", [(9, "I"), (26, "Z"), (27, "A")])
def test_a_question_has_as_many_options_as_there_are_letters(folder, number, key):
    texts, labels = [f"option {k}" for k in range(number)], [chr(ord("A") + k) for k in range(number)]
    path = next(folder.glob("allenai/ai2_arc/ARC-Easy/test-*"))
    path.write_bytes(parquet([arc("Q3", "Which one?", texts, labels, key)]))
    if number > 26:
        with pytest.raises(InputError, match="row 0 of arc-easy-test .*27 options"):
            read_benchmarks(folder)
    else:
        row = by_task(read_benchmarks(folder)["test"])["arc-easy"][0]
        assert (row["answer"], len(row["choices"])) == (key, number)


def test_two_files_for_one_split_are_refused(tmp_path):
    for name in ("oasst1-train.jsonl", "sft-oasst1-train.parquet"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="holds oasst1-train.jsonl and sft-oasst1-train.parquet: leave one"):
        read_benchmarks(tmp_path)


def test_neighbours_of_a_file_are_let_alone(folder):
    for name in ("gsm8k-test.jsonl.md5", "old-gsm8k-test.jsonl"):
        (folder / name).write_text("not rows")
    next(folder.glob("openai/gsm8k/main/test-*")).rename(folder / "gsm8k-test.parquet")
    assert len(by_task(read_benchmarks(folder)["test"])["gsm8k"]) == 1


def test_a_folder_with_nothing_in_it_is_told_what_it_may_hold(tmp_path):
    with pytest.raises(ValueError, match=r"oasst1-train\.parquet .* nor rows of your own \(seed\.jsonl"):
        read_source(str(tmp_path))


def test_chat_with_other_columns_is_named(folder):
    next(folder.glob("OpenAssistant/oasst1/data/train-*")).write_bytes(parquet([{"text": "What is tea?"}]))
    with pytest.raises(ValueError, match="oasst1-train has not the columns of OpenAssistant/oasst1, but text"):
        read_benchmarks(folder)


@pytest.mark.parametrize("label", ["", "23", "0", "4"])
def test_a_label_that_is_none_is_no_answer(folder, label):
    path = next(folder.glob("lighteval/siqa/data/validation-*"))
    path.write_bytes(parquet([siqa("Lee fell.", "How is Lee?", "glad", "hurt", "rich", label)]))
    with pytest.raises(ValueError, match="row 0 of siqa-validation"):
        read_benchmarks(folder)


@pytest.mark.parametrize("solution", ["It is five.", "It is five.\n#### five", "It is x + 3.\n#### x + 3"])
def test_a_solution_without_a_number_as_its_answer_is_named(folder, solution):
    next(folder.glob("openai/gsm8k/main/test-*")).write_bytes(parquet([{"question": "2 + 3?", "answer": solution}]))
    with pytest.raises(ValueError, match="row 0 of gsm8k-test"):
        read_benchmarks(folder)


def run_data(folder, source, **changes):
    """{name: rows} of the splits that notebooks/01_data.ipynb makes."""
    params = yaml.safe_load((ROOT / "profiles" / "smollm2-benchmarks.yaml").read_text())
    params["data"] |= {"source": str(source), "prompts_per_round": 1, "rounds": 2, "test_questions": None, **changes}
    params["model"]["warmup"]["examples"] = 3
    (folder / "notebooks").mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    notebook = nbformat.read(ROOT / "notebooks" / "01_data.ipynb", as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"import sys\nsys.path.insert(0, {str(ROOT)!r})"))
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(folder / "notebooks")}}).execute()
    return {path.stem: read_rows(path) for path in (folder / "data" / "splits").glob("*.jsonl")}


def test_where_the_seed_is_chat_the_warm_up_is_of_train_questions_that_are_no_prompts(folder, tmp_path):
    splits = run_data(tmp_path, folder, seed_examples=1, balanced=True)
    assert [row["task"] for row in splits["seed"]] == ["oasst1"] and len(splits["test"]) == 6
    assert len(splits["warmup"]) == 3 and all(row["answer"] and row["response"] for row in splits["warmup"])
    used = [row["id"] for name in splits if name != "test" for row in splits[name]]
    assert len(used) == len(set(used)) == 6
    assert not [row for row in splits["prompts-1"] + splits["prompts-2"] if "response" in row]


def test_a_seed_with_some_chat_gives_the_warm_up_its_worked_rows(tmp_path):
    worked = [
        {"id": f"w{n}", "task": "sums", "question": f"{n} + 1?", "answer": f"{n + 1}", "response": f"Answer: {n + 1}"}
        for n in range(5)
    ]
    chat = {"id": "c", "task": "chat", "question": "Hi", "response": "Hello."}
    source = tmp_path / "source"
    write_rows(source / "seed.jsonl", [*worked, chat])
    write_rows(source / "prompts.jsonl", [{**row, "id": f"p{n}", "question": f"{n} + 2?"} for n, row in enumerate(worked)])
    write_rows(source / "test.jsonl", [{**worked[0], "id": "t", "question": "9 + 9?"}])
    splits = run_data(tmp_path, source, seed_examples=3)
    assert len(splits["warmup"]) == 3 and {row["task"] for row in splits["warmup"]} == {"sums"}
    assert sorted(row["id"] for name in ("warmup", "seed") for row in splits[name]) == ["c", *(f"w{n}" for n in range(5))]


def test_a_source_can_have_another_task_for_the_warm_up(tmp_path):
    splits = run_data(tmp_path, "digits", seed_examples=2)
    assert {name: len(rows) for name, rows in splits.items() if name != "test"} == {
        "warmup": 3, "seed": 2, "prompts-1": 1, "prompts-2": 1
    }  # fmt: skip
    assert {name: {row["task"] for row in rows} for name, rows in splits.items()} == {
        "warmup": {"up"}, **dict.fromkeys(["seed", "prompts-1", "prompts-2", "test"], {"down"})
    }  # fmt: skip


@pytest.mark.parametrize("change", [{"answerKey": "F"}, {"choices": None}, {"answerKey": None}])
def test_a_row_that_makes_no_sense_is_named(folder, change):
    path = next(folder.glob("allenai/ai2_arc/ARC-Easy/test-*"))
    path.write_bytes(parquet([{**arc("Q3", "Which one melts?", ["ice", "air"], list("AB"), "A"), **change}]))
    with pytest.raises(ValueError, match="row 0 of arc-easy-test has not the columns or the values of allenai/ai2_arc"):
        read_benchmarks(folder)


READ = "import json, cream.data.rows; print(json.dumps(cream.data.rows.read_source('benchmarks')))"


@pytest.fixture
def repositories():
    found = {f"datasets/{repo}": (revision, {}) for repo, revision in REVISIONS.items()}
    for path, rows in FILES.items():
        owner, name, file = path.split("/", 2)
        found[f"datasets/{owner}/{name}"][1][file] = parquet(rows)
    return found


def test_the_hub_gives_the_same_rows_and_later_the_cache_does(repositories, folder, tmp_path):
    with local_hub(repositories) as endpoint:
        done = run_with_hub(endpoint, tmp_path / "home", READ)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == read_benchmarks(folder)
    done = run_with_hub(None, tmp_path / "home", READ)
    assert json.loads(done.stdout) == read_benchmarks(folder)
