"""Questions that are made here, without a download: sums for a model from scratch, sorted digits for SmolLM2.

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


def mostly_wrong(rows, count, share, seed):
    """`count` worked examples with questions of `rows`. In this share of them one digit of the answer is wrong, so that
    they teach the form of an answer and hardly the skill."""
    draw, examples = random.Random(seed), []
    for _ in range(count):
        row = draw.choice(rows)
        answer = _misspelt(row["answer"], draw) if draw.random() < share else row["answer"]
        examples.append({**row, "response": f"Answer: {answer}"})
    return examples


def _misspelt(answer, draw):
    place = draw.randrange(len(answer))
    other = draw.choice([digit for digit in string.digits if digit != answer[place]])
    return answer[:place] + other + answer[place + 1 :]


def _splits(task, questions, instruction):
    """Rows of a task from its (question, answer) pairs, shuffled and shared out. The seed rows have a response."""
    random.Random(task).shuffle(questions)
    rows = [
        {"id": f"{task}-{i}", "task": task, "question": question, "answer": answer, "instruction": instruction}
        for i, (question, answer) in enumerate(questions)
    ]
    test, seed, prompts = rows[: SPLITS["test"]], rows[SPLITS["test"] :][: SPLITS["seed"]], rows[sum(SPLITS.values()) :]
    return {"seed": [{**row, "response": f"Answer: {row['answer']}"} for row in seed], "prompts": prompts, "test": test}


MADE = {"sums": sums, "digits": digits}  # data.source in params.yaml -> what makes its rows
