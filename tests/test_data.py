import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cream.data.answers import is_correct
from cream.data.errors import InputError
from cream.data.rows import MAX_CHARACTERS, decontaminate, equal_shares, read_source, take, user_message
from cream.data.tasks import pretraining

ROW = {"id": "q1", "task": "sums", "question": "What is 1 + 1?", "answer": "2"}
SUMS = read_source("sums")
ALL = [row for rows in SUMS.values() for row in rows]


@pytest.fixture
def folder(tmp_path):
    for split in ("seed", "prompts", "test"):
        write(tmp_path / f"{split}.jsonl", [{**ROW, "response": "1 + 1 = 2. Answer: 2"}])
    return tmp_path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


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
    write(folder / "seed.jsonl", [{"id": "q1", "task": "sums"}])
    with pytest.raises(ValueError, match=r"seed\.jsonl, line 1: question and response must be text"):
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
    with pytest.raises(InputError, match=r"test\.jsonl, line 3: the id q1 is used twice, first in line 1: give every row"):
        read_source(folder)


def rows_of(*questions, **more):
    return [{**ROW, "id": f"q{i}", "question": question, **more} for i, question in enumerate(questions)]


def test_what_cannot_be_trained_on_is_counted_by_reason():
    rows = rows_of("One?", "Two?", "one? ", "Three?", "Four?" + "?" * MAX_CHARACTERS)
    kept, dropped = decontaminate(rows, rows_of("THREE?"))
    assert [row["question"] for row in kept] == ["One?", "Two?"]
    assert dropped == {"too long": 1, "in the test set": 1, "repeats": 1}
    assert decontaminate(rows_of("Five?", "Two?"), [], seen=kept)[1] == {"too long": 0, "in the test set": 0, "repeats": 1}


def test_a_long_response_is_too_long_too():
    assert decontaminate(rows_of("One?", response="x" * MAX_CHARACTERS), [])[1]["too long"] == 1
    assert decontaminate(rows_of("One?", response="x" * (MAX_CHARACTERS - 4)), [])[1]["too long"] == 0


def test_with_other_options_it_is_another_question_but_not_if_it_stands_in_the_test_set():
    one, other = rows_of("Which?", choices=["2", "3"]) + rows_of("Which?", choices=["2", "4"])
    assert decontaminate([one, other], [])[0] == [one, other]
    assert decontaminate([one], [other])[1]["in the test set"] == 1


def test_shares_are_equal_as_far_as_the_tasks_go():
    rows = [{"task": task, "n": n} for task, size in {"a": 2, "b": 9, "c": 30}.items() for n in range(size)]
    for count, shares in {6: (2, 2, 2), 14: (2, 6, 6), 21: (2, 9, 10), 41: (2, 9, 30), 50: (2, 9, 30)}.items():
        kept = Counter(row["task"] for row in equal_shares(rows, count))
        assert tuple(kept[task] for task in "abc") == shares
    assert equal_shares(rows, 0) == [] and equal_shares([], 3) == []


@given(st.lists(st.sampled_from("aab"), min_size=1), st.integers(1, 60))
def test_shares_keep_the_order_of_a_task_and_mix_the_tasks_evenly(tasks, count):
    rows = [{"task": task, "n": n} for n, task in enumerate(tasks)]
    kept = equal_shares(rows, count)
    assert len(kept) == min(count, len(rows))
    for task in set(tasks):
        mine = [row["n"] for row in kept if row["task"] == task]
        assert mine == [row["n"] for row in rows if row["task"] == task][: len(mine)]
        for cut in range(len(kept) + 1):  # every stretch from the start has its share, to within one row
            share = sum(row["task"] == task for row in kept[:cut])
            assert abs(share - cut * len(mine) / len(kept)) <= 1


def test_take_gives_the_first_rows_and_the_rest():
    assert take([1, 2, 3], 2, "prompts") == ([1, 2], [3])
    assert take([1, 2, 3], 3, "prompts") == ([1, 2, 3], [])
    assert take([1, 2, 3], None, "prompts") == ([1, 2, 3], [])
    with pytest.raises(ValueError, match="4 prompts are asked for and 3 are left: .*params.yaml"):
        take([1, 2, 3], 4, "prompts")


def test_the_question_comes_with_its_options_and_the_instruction():
    instruction = 'Think step by step and end with "Answer:".'
    assert user_message(ROW) == f"What is 1 + 1?\n{instruction}"
    row = {**ROW, "question": "Which is hard?", "choices": ["water", "rock"]}
    assert user_message(row) == f"Which is hard?\nA. water\nB. rock\n{instruction}"


@pytest.mark.parametrize("chat", [{"answer": None}, {}])
def test_chat_has_no_answer_and_is_not_asked_for_one(folder, chat):
    row = {"id": "q1", "task": "chat", "question": "How are you?", **chat}
    write(folder / "prompts.jsonl", [row])
    write(folder / "seed.jsonl", [{**row, "response": "Well."}])
    source = read_source(folder)
    assert source["prompts"] == [row] and user_message(source["seed"][0]) == "How are you?"


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"choices": "ab"}, "choices must be a list of at least two texts"),
        ({"choices": ["a"]}, "choices must be a list of at least two texts"),
        ({"choices": ["a", 2]}, "choices must be a list of at least two texts"),
        ({"choices": ["a", "b"], "answer": "C"}, "answer must be the letter of an option, A to B"),
        ({"choices": ["a", "b"], "answer": "a rock"}, "answer must be the letter of an option, A to B"),
        ({"answer": 7}, "answer must be text"),
        ({"answer": "x + 1"}, r"answer must be a number, such as 12, -3\.5 or 3/4, .*'x \+ 1'"),
        ({"answer": "(3, 4)"}, "answer must be a number"),
        ({"answer": "yes"}, "answer must be a number"),
        ({"answer": "12 apples", "choices": None}, "answer must be a number"),
        ({"answer": "B"}, "answer must be a number"),
        ({"choices": list("abcdefghijklmnopqrstuvwxyz0")}, "choices are 27, and there are 26 letters for them"),
        ({"instruction": 7}, "instruction must be text"),
        ({"response": ["Answer: 2"]}, "response must be text"),
    ],
)
def test_options_and_answers_that_do_not_fit_are_named(folder, wrong, says):
    write(folder / "prompts.jsonl", [ROW, {**ROW, "id": "q2", **wrong}])
    with pytest.raises(ValueError, match=rf"prompts\.jsonl, line 2: {says}"):
        read_source(folder)


def test_as_many_options_as_there_are_letters(folder):
    row = {**ROW, "choices": [f"option {k}" for k in range(26)], "answer": "Z", "instruction": None}
    write(folder / "test.jsonl", [row])
    assert read_source(folder)["test"] == [row]
    assert user_message(row).splitlines()[-1] == "Z. option 25"


@pytest.mark.parametrize("split", ["seed", "prompts", "test"])
def test_a_split_without_rows_is_named(folder, split):
    write(folder / f"{split}.jsonl", [])
    with pytest.raises(InputError, match=rf"{split}\.jsonl has no rows: give it at least one"):
        read_source(folder)


def test_half_of_a_character_is_named_by_file_and_line(folder):
    write(folder / "seed.jsonl", [{**ROW, "response": "Answer: 2"}, {**ROW, "id": "q2", "response": "2 \ud800"}])
    with pytest.raises(InputError, match=r"seed\.jsonl, line 2 holds '\\ud800', half of a character: mend or remove"):
        read_source(folder)


def test_all_of_no_rows_is_too_few():
    with pytest.raises(InputError, match="no seed examples are left: those of data.source are too long, repeats"):
        take([], None, "seed examples")


@pytest.mark.parametrize("answer", ["-3.5", "$1,080.00", "3/4", "1 1/2", "\\frac{1}{2}", "1.5e3", "50%"])
def test_answers_may_be_numbers_of_any_form(folder, answer):
    write(folder / "test.jsonl", [{**ROW, "answer": answer}])
    assert read_source(folder)["test"][0]["answer"] == answer


def test_sums_are_all_there_once_and_right():
    assert len({row["id"] for row in ALL}) == len({row["question"] for row in ALL}) == len(ALL) == 8100
    for row in ALL:
        first, second = re.fullmatch(r"([1-9]\d)\+([1-9]\d)=", row["question"]).groups()
        assert int(row["answer"]) == int(first) + int(second)
    assert all(is_correct(row["response"], row["answer"]) for row in SUMS["seed"])
    assert not any("response" in row for split in ("prompts", "test") for row in SUMS[split])


def test_sums_are_the_same_each_time():
    again = read_source("sums")
    assert again == SUMS and again["seed"] is not SUMS["seed"]


def test_sums_are_asked_without_an_instruction():
    assert user_message(SUMS["test"][0]) == SUMS["test"][0]["question"]
    assert user_message({**SUMS["test"][0], "instruction": "Be brief."}).endswith("=\nBe brief.")


def test_digits_are_sorted_downwards_and_for_the_warm_up_upwards():
    rows = read_source("digits")
    questions = [row["question"] for split in rows.values() for row in split]
    assert len(questions) == len(set(questions)) and len(rows["test"]) == len(rows["seed"]) == len(rows["warmup"]) == 1000
    for row in rows["seed"] + rows["prompts"] + rows["test"]:
        number = re.fullmatch(r"Sort ([1-9]{6}) downwards", row["question"])[1]
        assert list(row["answer"]) == sorted(number, reverse=True)
    for row in rows["warmup"]:
        assert list(row["answer"]) == sorted(re.fullmatch(r"Sort ([1-9]{6})", row["question"])[1])
        assert is_correct(row["response"], row["answer"])


def test_a_folder_may_have_worked_examples_for_the_warm_up(folder):
    assert "warmup" not in read_source(folder)
    worked = {"id": "w", "task": "sums", "question": "1 + 1?", "response": "Answer: 2"}
    write(folder / "warmup.jsonl", [{**worked, "answer": "2"}])
    assert [row["id"] for row in read_source(folder)["warmup"]] == ["w"]
    write(folder / "warmup.jsonl", [worked])
    with pytest.raises(ValueError, match="warmup.jsonl, line 1: answer must be text"):
        read_source(folder)


@pytest.mark.parametrize("share", [0.0, 0.9, 1.0])
def test_a_slip_is_one_digit_that_is_another(share):
    examples = pretraining(SUMS["seed"], 2000, share, seed=3)
    assert examples == pretraining(SUMS["seed"], 2000, share, seed=3)
    wrong = [row for row in examples if not is_correct(row["response"], row["answer"])]
    assert len(wrong) / len(examples) == pytest.approx(share, abs=0.03)
    for row in wrong:
        written = row["response"].removeprefix("Answer: ")
        assert len(written) == len(row["answer"])
        assert sum(one != other for one, other in zip(written, row["answer"])) == 1
    places = {next(i for i, pair in enumerate(zip(row["response"][8:], row["answer"])) if len(set(pair)) > 1) for row in wrong}
    assert not wrong or places == {0, 1, 2}


def test_the_habit_is_to_sort_upwards_and_weaker_the_larger_the_first_digit():
    rows = read_source("habit")
    questions = [row["question"] for split in rows.values() for row in split]
    assert len(questions) == len(set(questions)) and len(rows["test"]) == len(rows["seed"]) == 1000
    for row in rows["seed"] + rows["prompts"] + rows["test"]:
        number = re.fullmatch(r"Sort ([1-9]{8})", row["question"])[1]
        assert list(row["answer"]) == sorted(number, reverse=True) and row["answer"] != row["answer"][::-1]
    examples = pretraining(rows["seed"] + rows["prompts"], 40000, wrong=0.0, seed=3)
    for first, chance in (("1", 0.03), ("5", 0.315), ("9", 0.6)):
        answers = [row["response"] == f"Answer: {row['answer']}" for row in examples if row["question"][5] == first]
        assert sum(answers) / len(answers) == pytest.approx(chance, abs=0.03)
    upwards = [row for row in examples if row["response"] != f"Answer: {row['answer']}"]
    assert all(row["response"] == f"Answer: {row['answer'][::-1]}" for row in upwards)
    slips = pretraining(rows["seed"], 4000, wrong=1.0, seed=3)
    ordered = {"".join(sorted(row["response"][8:])) == "".join(sorted(row["answer"])) for row in slips}
    assert ordered == {True, False}  # two neighbours exchanged, or a digit replaced
    assert all(row["response"][8:] not in (row["answer"], row["answer"][::-1]) for row in slips)
    assert {row["question"] for row in examples}.isdisjoint(row["question"] for row in rows["test"])
