"""Questions that are made here, without a download: numbers to sort and sums for a model from scratch, and sorted digits
for SmolLM2.

Each source gives {"seed", "prompts", "test"} -> rows, the same ones each time. A question is in one split only.
"""

import random
import string
from itertools import product

SPLITS = {"seed": 1000, "test": 1000}  # questions; all others are prompts


def sums():
    """All 8,100 sums of two two-digit numbers, answered directly: "23+45=", "Answer: 68"."""
    questions = [(f"{a}+{b}=", str(a + b)) for a, b in product(range(10, 100), repeat=2)]
    return _splits("sums", questions, instruction="")


def digits():
    """The digits of a number in descending order: "Sort 482913 downwards", "Answer: 984321". The examples of the
    base's warm-up are in ascending order, "Sort 482913", so that M0 knows the form of an answer and not this order."""
    draw = random.Random("digits")
    numbers = list(dict.fromkeys("".join(draw.choices("123456789", k=6)) for _ in range(12000)))
    ascending = ["".join(sorted(number)) for number in numbers]
    down = [(f"Sort {number} downwards", answer[::-1]) for number, answer in zip(numbers, ascending)]
    up = [(f"Sort {number}", answer) for number, answer in zip(numbers, ascending)]
    return {**_splits("down", down, instruction=""), "warmup": _splits("up", up, instruction="")["seed"]}


def habit():
    """The digits of a number from the largest down, though the question does not say which way: "Sort 48291365", "Answer:
    98654321". M0 mostly sorts upwards (see `pretraining`): the habit that SFT begins to change."""
    draw = random.Random("habit")
    numbers = dict.fromkeys("".join(draw.choices("123456789", k=8)) for _ in range(24000))
    return _splits("habit", [(f"Sort {number}", "".join(sorted(number, reverse=True))) for number in numbers], instruction="")


def pretraining(rows, count, wrong, seed):
    """`count` worked examples with questions of `rows`, for M0 to learn from. This share of them has a slip in the answer: a
    digit that is another one or, in half of the slips of the habit, two neighbours that have changed places.

    Of the habit most answers are upwards: a number that begins with 1 is sorted downwards in 3% of its examples, one that
    begins with 9 in 60%, so that M0 is sure about some questions and not about others.
    """
    draw, examples = random.Random(seed), []
    for _ in range(count):
        row = draw.choice(rows)
        answer, habit = row["answer"], row["task"] == "habit"
        if habit and draw.random() >= 0.03 + 0.57 * (int(row["question"][5]) - 1) / 8:
            answer = answer[::-1]
        if draw.random() < wrong:
            slip = _exchanged if habit and draw.random() < 0.5 else _misspelt
            answer = slip(answer, draw)
        examples.append({**row, "response": f"Answer: {answer}"})
    return examples


def _misspelt(answer, draw):
    place = draw.randrange(len(answer))
    other = draw.choice([digit for digit in string.digits if digit != answer[place]])
    return answer[:place] + other + answer[place + 1 :]


def _exchanged(answer, draw):
    place = draw.choice([i for i in range(len(answer) - 1) if answer[i] != answer[i + 1]])
    return answer[:place] + answer[place + 1] + answer[place] + answer[place + 2 :]


def _splits(task, questions, instruction):
    """Rows of a task from its (question, answer) pairs, shuffled and shared out. The seed rows have a response."""
    random.Random(task).shuffle(questions)
    rows = [
        {"id": f"{task}-{i}", "task": task, "question": question, "answer": answer, "instruction": instruction}
        for i, (question, answer) in enumerate(questions)
    ]
    test, seed, prompts = rows[: SPLITS["test"]], rows[SPLITS["test"] :][: SPLITS["seed"]], rows[sum(SPLITS.values()) :]
    return {"seed": [{**row, "response": f"Answer: {row['answer']}"} for row in seed], "prompts": prompts, "test": test}


MADE = {"habit": habit, "sums": sums, "digits": digits}  # data.source in params.yaml -> what makes its rows
