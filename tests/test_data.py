import json
import re
from pathlib import Path

import pytest

from cream.answers import is_correct
from cream.data import ask, check_context, drop_repeats, prompt_ids, read_source, response_ids, take

ROW = {"id": "q1", "task": "sums", "question": "What is 1 + 1?", "answer": "2"}
EMBEDDED = read_source("embedded")
ALL = [row for rows in EMBEDDED.values() for row in rows]


@pytest.fixture
def folder(tmp_path):
    for split in ("seed", "prompts", "test"):
        write(tmp_path / f"{split}.jsonl", [{**ROW, "response": "1 + 1 = 2. Answer: 2"}])
    return tmp_path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def value_of(question):
    """Of "What is 9 - 4 + 5?": the sum of its signed numbers."""
    expression = re.fullmatch(r"What is (\d+(?: [+-] \d+)+)\?", question).group(1)
    return sum(int(term) for term in re.sub(r"([+-]) ", r"\1", expression).split())


def test_a_folder_is_read_from_the_root(folder):
    for rows in (read_source(str(folder)), read_source(folder.name, root=folder.parent)):
        assert {split: len(rows) for split, rows in rows.items()} == {"seed": 1, "prompts": 1, "test": 1}
        assert rows["seed"][0]["response"] == "1 + 1 = 2. Answer: 2"


def test_a_broken_row_is_named_by_file_and_line(folder):
    (folder / "test.jsonl").write_text(json.dumps(ROW) + '\n{"id": "q2",\n')
    with pytest.raises(ValueError, match=r"test\.jsonl, line 2 is not JSON"):
        read_source(folder)


@pytest.mark.parametrize(
    "split, field", [("prompts", "question"), ("test", "answer"), ("seed", "response"), ("seed", "id")]
)
@pytest.mark.parametrize("value", [None, 7, "  "])
def test_a_field_that_is_not_text_is_named_by_file_and_line(folder, split, field, value):
    good = {**ROW, "response": "Answer: 2"}
    write(folder / f"{split}.jsonl", [good, {**good, "id": "q2", field: value}])
    with pytest.raises(ValueError, match=rf"{split}\.jsonl, line 2: {field} must be text"):
        read_source(folder)


def test_all_missing_fields_of_a_row_are_named(folder):
    write(folder / "seed.jsonl", [{"id": "q1", "task": "sums", "question": "What is 1 + 1?"}])
    with pytest.raises(ValueError, match=r"seed\.jsonl, line 1: answer and response must be text"):
        read_source(folder)


def test_prompts_need_no_response(folder):
    write(folder / "prompts.jsonl", [ROW])
    assert read_source(folder)["prompts"] == [ROW]


def test_a_missing_file_is_named(folder):
    (folder / "prompts.jsonl").unlink()
    with pytest.raises(ValueError, match=r"prompts\.jsonl does not exist: data\.source"):
        read_source(folder)


def test_an_id_that_stands_twice_is_named(folder):
    write(folder / "test.jsonl", [ROW, {**ROW, "id": "q2"}, {**ROW, "question": "What is 1 + 2?"}])
    with pytest.raises(ValueError, match=r"test\.jsonl.* q1 stands twice"):
        read_source(folder)


def test_repeats_are_dropped_across_splits_and_counted():
    one, two, three = ({**ROW, "id": f"q{i}", "question": f"What is {i} + 1?"} for i in (1, 2, 3))
    seen = set()
    assert drop_repeats([one, two, {**one, "id": "q9"}], seen) == ([one, two], 1)
    assert drop_repeats([two, three], seen) == ([three], 1)
    assert drop_repeats([{**one, "choices": ["2", "3"]}], seen)[1] == 0  # with options it is another question


def test_take_gives_the_first_rows_and_the_rest():
    assert take([1, 2, 3], 2, "prompts") == ([1, 2], [3])
    assert take([1, 2, 3], 3, "prompts") == ([1, 2, 3], [])
    with pytest.raises(ValueError, match="4 prompts are asked for and 3 are left: .*params.yaml"):
        take([1, 2, 3], 4, "prompts")


def test_the_question_comes_with_its_options_and_the_instruction():
    instruction = 'Think step by step and end with "Answer:".'
    assert ask(ROW) == f"What is 1 + 1?\n{instruction}"
    row = {**ROW, "question": "Which is hard?", "choices": ["water", "rock"]}
    assert ask(row) == f"Which is hard?\nA. water\nB. rock\n{instruction}"


def test_prompts_are_the_chat_template_up_to_the_assistant(tokenizer):
    ids = prompt_ids(tokenizer, ROW)
    assert tokenizer.decode(ids) == f"<|user|>{ask(ROW)}<|end|><|assistant|>"
    assert all(type(token) is int for token in ids)


def test_a_worked_response_ends_with_the_end_token(tokenizer):
    ids = response_ids(tokenizer, {**ROW, "response": "Answer: 2"})
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == "Answer: 2"


def test_a_prompt_that_leaves_too_little_context_is_named(tokenizer):
    length = len(prompt_ids(tokenizer, ROW))
    check_context(tokenizer, [ROW], 10, length + 10)
    check_context(tokenizer, [ROW], 10**9, None)
    with pytest.raises(ValueError, match=rf"the prompt q1 has {length} tokens; with 10 .* context of {length + 9}"):
        check_context(tokenizer, [{**ROW, "id": "q0", "question": "?"}, ROW], 10, length + 9)


def test_embedded_ids_and_questions_are_unique_over_all_splits():
    assert len({row["id"] for row in ALL}) == len({row["question"] for row in ALL}) == len(ALL)


def test_embedded_splits_hold_every_task():
    tasks = {split: {row["task"] for row in rows} for split, rows in EMBEDDED.items()}
    assert tasks["seed"] == tasks["prompts"] == tasks["test"]


def test_embedded_answers_are_right():
    assert [row["id"] for row in ALL if row["answer"] != str(value_of(row["question"]))] == []


def test_embedded_worked_examples_end_in_the_right_answer():
    wrong = [row["id"] for row in EMBEDDED["seed"] if not is_correct(row["response"], str(value_of(row["question"])))]
    assert wrong == []


def test_embedded_worked_examples_make_no_wrong_step():
    steps = [
        step for row in EMBEDDED["seed"] for step in re.findall(r"(-?\d+) ([+-]) (\d+) = (-?\d+)", row["response"])
    ]
    assert len(steps) >= len(EMBEDDED["seed"])
    assert [step for step in steps if int(step[0]) + int(step[1] + step[2]) != int(step[3])] == []


def test_embedded_data_is_small():
    folder = Path(__file__).parents[1] / "data" / "arithmetic"
    assert sum(file.stat().st_size for file in folder.glob("*.jsonl")) < 1_000_000
