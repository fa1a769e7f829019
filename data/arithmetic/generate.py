"""Writes the embedded data beside this file, the same bytes each time (pip install -e '.[data]').

Questions and answers come from reasoning-gym (Apache-2.0); the worked solutions are written here. Installing
reasoning-gym compiles C code, so the rows are committed and nothing else in the project needs it.
"""

import json
import random
from pathlib import Path

import reasoning_gym

# Item i of a reasoning-gym data set uses Random(seed + i): seeds closer than the size give shifted copies.
TASKS = {
    "three-terms": dict(seed=1_000_000, min_terms=3, max_terms=3, min_digits=1, max_digits=2),
    "four-terms": dict(seed=2_000_000, min_terms=4, max_terms=4, min_digits=1, max_digits=1),
}
SPLITS = {"seed": 600, "prompts": 600, "test": 225}  # rows of each task


def steps_of(expression):
    """23 + 45 - 7 -> [("23 + 45", 68), ("68 - 7", 61)], one operation at a time."""
    first, *rest = expression.split()
    total, steps = int(first), []
    for sign, number in zip(rest[::2], rest[1::2]):
        result = total + int(number) if sign == "+" else total - int(number)
        steps.append((f"{total} {sign} {number}", result))
        total = result
    return steps


def worked_solution(steps):
    """Always in one wording: with several, the implicit reward ranks the wordings instead of the answers."""
    return "".join(f"{term} = {value}. " for term, value in steps) + f"Answer: {steps[-1][1]}"


def rows_of(task, settings):
    """All rows of one task, each question once."""
    items = {}
    size = 4 * sum(SPLITS.values())
    for item in reasoning_gym.create_dataset("chain_sum", size=size, **settings):
        items.setdefault(item["metadata"]["expression"], item)
    for expression, item in items.items():
        steps = steps_of(expression)
        assert str(steps[-1][1]) == item["answer"]
        yield {
            "id": f"{task}-{item['metadata']['source_index']}",
            "task": task,
            "question": f"What is {expression}?",
            "answer": item["answer"],
            "response": worked_solution(steps),
        }


def main():
    splits = {split: [] for split in SPLITS}
    for task, settings in TASKS.items():
        rows = rows_of(task, settings)
        for split, count in SPLITS.items():
            splits[split] += [next(rows) for _ in range(count)]
    for split, rows in splits.items():
        random.Random(split).shuffle(rows)
        for row in rows:
            if split != "seed":
                del row["response"]
        path = Path(__file__).with_name(f"{split}.jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
