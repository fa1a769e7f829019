"""Questions, worked examples and prompts: rows with an id that stays with them from the first stage to the last."""

from pathlib import Path

from cream.data.errors import InputError
from cream.data.files import read_rows
from cream.data.numerals import number
from cream.data.tasks import MADE

FIELDS = {
    "seed": ("id", "task", "question", "response"),
    "prompts": ("id", "task", "question"),
    "test": ("id", "task", "question", "answer"),
}
INSTRUCTION = 'Think step by step and end with "Answer:".'  # the paper's task suffix, in our words
MAX_CHARACTERS = 8000  # of a question and its response: about 2,000 tokens, the paper's longest sequence


def read_source(source, root="."):
    """{"seed", "prompts", "test"} -> rows, from a task of cream/data/tasks.py ("sums"), from the paper's data sets
    ("benchmarks", or a folder with copies of them), or from a folder with seed.jsonl, prompts.jsonl and test.jsonl.
    Folders are seen from `root`. Some sources have rows of another task for the base's "warmup" (warmup.jsonl).

    A row has id, task and question (text), and `answer` (a number as text; null or none for chat, which has no known
    answer). A seed row has a `response`. A multiple-choice row has `choices`, the option texts, and a letter as its
    answer. An `instruction` takes the place of INSTRUCTION behind the question of a row with an answer.
    """
    if source in MADE:
        return MADE[source]()
    folder = Path(root) / Path(source).expanduser()
    if source == "benchmarks" or not any((folder / f"{split}.jsonl").exists() for split in FIELDS):
        from cream.data.benchmarks import read_benchmarks  # not needed for other sources

        return read_benchmarks(None if source == "benchmarks" else folder)
    splits = {**FIELDS, "warmup": (*FIELDS["seed"], "answer")} if (folder / "warmup.jsonl").exists() else FIELDS
    return {split: _read_split(folder / f"{split}.jsonl", fields) for split, fields in splits.items()}


def decontaminate(rows, test, seen=()):
    """The rows that may be trained on, and the number of the others by reason: too long, a question of `test` (whatever
    its options), or the message of a row before it or of one of the rows `seen`. Case and spacing do not count."""
    test, seen = {plain(row["question"]) for row in test}, {plain(user_message(row)) for row in seen}
    kept, dropped = [], {"too long": 0, "in the test set": 0, "repeats": 0}
    for row in rows:
        if len(row["question"]) + len(row.get("response") or "") > MAX_CHARACTERS:
            dropped["too long"] += 1
        elif plain(row["question"]) in test:
            dropped["in the test set"] += 1
        elif plain(user_message(row)) in seen:
            dropped["repeats"] += 1
        else:
            seen.add(plain(user_message(row)))
            kept.append(row)
    return kept, dropped


def equal_shares(rows, count):
    """`count` of the rows (all, if there are fewer): as many of each task as of any other, as far as it has rows. The
    tasks are spread evenly, so that every stretch of the result has the same mix; the order within a task is kept."""
    tasks = {}
    for row in rows:
        tasks.setdefault(row["task"], []).append(row)
    shared, left = [], min(count, len(rows))
    for i, task in enumerate(sorted(tasks, key=lambda task: len(tasks[task]))):
        share = min(len(tasks[task]), left // (len(tasks) - i))
        left -= share
        shared += [((k + 0.5) / share, row) for k, row in enumerate(tasks[task][:share])]
    return [row for _, row in sorted(shared, key=lambda placed: placed[0])]


def take(rows, count, what):
    """The first `count` rows (None: all) and the rest; an InputError where there are too few."""
    if count is None and not rows:
        raise InputError(f"no {what} are left: those of data.source are too long, repeats, or in the test set")
    count = len(rows) if count is None else count
    if len(rows) < count:
        raise InputError(f"{count} {what} are asked for and {len(rows)} are left: lower it in params.yaml (data)")
    return rows[:count], rows[count:]


def user_message(row):
    """The user's message: the question, its lettered options if it has any, and the instruction if it has an answer."""
    options = [f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(row.get("choices") or [])]
    instruction = row.get("instruction", INSTRUCTION) if row.get("answer") else ""
    return "\n".join([row["question"], *options, *([instruction] if instruction else [])])


def plain(text):
    """What two texts that differ in case and spacing alone have in common."""
    return " ".join(text.lower().split())


def _read_split(path, fields):
    if not path.exists():
        raise InputError(f"{path} does not exist: data.source in params.yaml must name a folder that holds it")
    rows, lines = read_rows(path), {}
    if not rows:
        raise InputError(f"{path} has no rows: give it at least one")
    for line, row in enumerate(rows, start=1):
        problem = problem_of(row, fields)
        if problem:
            raise InputError(f"{path}, line {line}: {problem}: mend or remove that line")
        first = lines.setdefault(row["id"], line)
        if first != line:
            twice = f"the id {row['id']} is used twice, first in line {first}"
            raise InputError(f"{path}, line {line}: {twice}: give every row its own")
    return rows


def problem_of(row, fields):
    """What is wrong with a row that must have text in these fields; None where nothing is."""
    fields = [*fields, "answer"] if row.get("answer") is not None and "answer" not in fields else fields
    wrong = [field for field in fields if not is_text(row.get(field))]
    free = {"response", "instruction"} - {*fields}
    wrong += sorted(field for field in free if not isinstance(row.get(field) or "", str))
    if wrong:
        return f"{' and '.join(wrong)} must be text"
    choices = row.get("choices")
    if choices is None:
        if row.get("answer") is None or number(row["answer"]) is not None:
            return None
        return f"answer must be a number, such as 12, -3.5 or 3/4, as there are no choices (it is {row['answer']!r})"
    if not isinstance(choices, list) or len(choices) < 2 or not all(map(is_text, choices)):
        return "choices must be a list of at least two texts"
    if len(choices) > 26:
        return f"choices are {len(choices)}, and there are 26 letters for them"
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    if row.get("answer") is not None and row["answer"].strip().upper() not in letters:
        return f"answer must be the letter of an option, A to {letters[-1]}"


def is_text(value):
    """Whether a field holds text that is more than blanks."""
    return isinstance(value, str) and bool(value.strip())
