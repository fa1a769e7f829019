"""The paper's data sets, from the Hub or from local copies, as rows of cream/data/rows.py.

Each is read as its authors publish it: ARC, OpenBookQA, SIQA and GSM8K are the questions, OpenAssistant the seed.
"""

import re
import tempfile
from pathlib import Path
from string import ascii_uppercase

from datasets import disable_progress_bars, load_dataset
from datasets.exceptions import DatasetGenerationError

from cream.data import hub, numerals
from cream.data.errors import InputError
from cream.data.rows import is_text, problem_of

disable_progress_bars()

# The commits whose files and columns are read here.
REVISIONS = {
    "allenai/ai2_arc": "210d026faf9955653af8916fad021475a3f00453",
    "allenai/openbookqa": "388097ea7776314e93a529163e0fea805b8a6454",
    "lighteval/siqa": "54c6a1f8cb6daf4f5abf24a601852612fb35eb25",
    "openai/gsm8k": "740312add88f781978c0658806c59bc2815b9866",
    "OpenAssistant/oasst1": "fdf72ae0827c1cda404aff25b6603abec9e3399b",
}
# For each task: its repository, the folder of its parquet files there, and the split that the paper tests on.
TASKS = {
    "arc-easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
    "arc-challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "openbookqa": ("allenai/openbookqa", "main", "test"),
    "siqa": ("lighteval/siqa", "data", "validation"),
    "gsm8k": ("openai/gsm8k", "main", "test"),
}
LETTERS = list(ascii_uppercase)
CHAT = ("OpenAssistant/oasst1", "data")


def read_benchmarks(folder=None):
    """{"seed", "prompts", "test"} -> rows. The seed is OpenAssistant's, the test sets are whole, and the prompts are
    all train questions and OpenAssistant's. A train question has a worked `response`.

    `folder` holds local copies: of each repository as the Hub lays it out (<folder>/allenai/ai2_arc/ARC-Easy/...), or a
    file for each task and split (arc-easy-train.parquet, .jsonl or .jsonl.gz; oasst1-train for the seed) with the
    Hub's columns, or with stem, choices and answer (a letter or a number) and, for the seed, prompt and response.
    Without it, the Hub at pinned commits.
    """
    chat = _conversations(_read(folder, "oasst1", *CHAT, "train"))
    train, test = [], []
    for task, (repo, subfolder, test_split) in TASKS.items():
        train += _questions(_read(folder, task, repo, subfolder, "train"), task, "train")
        test += _questions(_read(folder, task, repo, subfolder, test_split), task, test_split)
    for row in test:
        del row["response"]  # nothing after this needs it, so nothing can train on it
    return {"seed": chat, "prompts": train + chat, "test": test}


def _read(folder, task, repo, subfolder, split):
    """The records of one split, as a list of dicts with the columns of the file."""
    pattern = f"{subfolder}/{split}-*.parquet"
    if folder is None:
        files = sorted(hub.fetch(repo, REVISIONS[repo], [pattern], kind="dataset").glob(pattern))
    else:
        files = sorted(Path(folder, repo).glob(pattern)) or _flat_file(Path(folder), f"{task}-{split}")
    if not files:
        raise InputError(
            f"{folder or repo} holds neither {task}-{split}.parquet or .jsonl nor a copy of {repo}, nor rows of your "
            "own (seed.jsonl, prompts.jsonl, test.jsonl): see data.source in params.yaml"
        )
    kind = "parquet" if files[0].suffix == ".parquet" else "json"
    with tempfile.TemporaryDirectory() as cache:
        try:
            return load_dataset(kind, data_files=list(map(str, files)), split="train", cache_dir=cache).to_list()
        except StopIteration:
            raise InputError(f"{files[0]} has no rows: copy it again") from None
        except (DatasetGenerationError, OSError, ValueError) as error:
            reason = hub.first_line(error.__cause__ or error)
            raise InputError(f"{files[0]} cannot be read ({reason}): copy it again") from None


def _flat_file(folder, name):
    names = [f"{before}{name}{ending}" for before in ("", "sft-") for ending in (".parquet", ".jsonl", ".jsonl.gz")]
    found = [folder / name for name in names if (folder / name).exists()]
    if len(found) > 1:
        raise InputError(f"{folder} holds {found[0].name} and {found[1].name}: leave one of them")
    return found


def _questions(records, task, split):
    rows = []
    for number, record in enumerate(records):
        try:
            row = COLUMNS[task](record) if "stem" not in record else _normalised(record)
        except (KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
            raise InputError(
                f"row {number} of {task}-{split} has not the columns or the values of {TASKS[task][0]} ({error!r})"
            ) from None
        problem = problem_of(row, ("question",))
        if problem:
            raise InputError(f"row {number} of {task}-{split}: {problem}: mend it, or copy the file again")
        rows.append({"id": f"{task}-{split}-{number:05d}", "task": task, **row})
    return rows


def _conversations(records):
    """First turns in English with the reply that its readers ranked best."""
    columns = set(records[0]) if records else set()
    if {"id", "prompt", "response"} <= columns:
        return _checked([_chat(record["id"], record["prompt"], record["response"]) for record in records])
    if not {"message_id", "parent_id", "role", "lang", "rank", "text"} <= columns:
        raise InputError(f"oasst1-train has not the columns of {CHAT[0]}, but {', '.join(sorted(columns)) or 'none'}")
    english = [
        record
        for record in records
        if record["lang"] == "en" and not record.get("deleted") and is_text(record["text"])
    ]
    replies = {}
    for record in english:
        if record["role"] == "assistant":
            replies.setdefault(record["parent_id"], []).append(record)
    return [
        _chat(record["message_id"], record["text"], min(replies[record["message_id"]], key=_rank)["text"])
        for record in english
        if record["role"] == "prompter" and record["parent_id"] is None and record["message_id"] in replies
    ]


def _checked(rows):
    ids = set()
    for number, row in enumerate(rows):
        problem = problem_of(row, ("question", "response")) or ("its id is used twice" if row["id"] in ids else None)
        if problem:
            raise InputError(f"row {number} of oasst1-train: {problem}: mend or remove it")
        ids.add(row["id"])
    return rows


def _rank(reply):
    """0 is the best; a reply that was not ranked comes last."""
    return float("inf") if reply["rank"] is None else reply["rank"]


def _chat(id, question, response):
    return {"id": f"oasst1-{id}", "task": "oasst1", "question": question, "answer": None, "response": response}


def _multiple_choice(question, choices, index):
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"{len(choices)} options")
    letter = LETTERS[index]
    response = f"The best option is {letter}, {choices[index].rstrip('.')}.\nAnswer: {letter}"
    return {"question": question, "choices": list(choices), "answer": letter, "response": response}


def _number(question, solution, answer):
    """GSM8K's solutions mark their sums, <<48/2=24>>24, and end in #### and the answer."""
    answer = answer.strip().replace(",", "")
    if numerals.number(answer) is None:
        raise ValueError(f"the answer {answer!r} is not a number")
    steps = re.sub(r"<<.*?>>", "", solution.partition("####")[0]).strip()
    return {"question": question, "answer": answer, "response": f"{steps}\nAnswer: {answer}"}


def _lettered(record, stem):
    """Options labelled A, B, ... or 1, 2, ...; the answer is kept as a letter by position."""
    choices = record["choices"]
    return _multiple_choice(record[stem], choices["text"], choices["label"].index(record["answerKey"].strip()))


def _siqa(record):
    choices = [record[f"answer{letter}"] for letter in "ABC"]
    question, label = " ".join([record["context"], record["question"]]), record["label"].strip()
    return _multiple_choice(question, choices, ["1", "2", "3"].index(label))


def _normalised(record):
    if record["choices"] is None:
        return _number(record["stem"], record.get("solution") or "", record["answer"])
    return _multiple_choice(record["stem"], record["choices"], LETTERS.index(record["answer"]))


COLUMNS = {
    "arc-easy": lambda record: _lettered(record, "question"),
    "arc-challenge": lambda record: _lettered(record, "question"),
    "openbookqa": lambda record: _lettered(record, "question_stem"),
    "siqa": _siqa,
    "gsm8k": lambda record: _number(record["question"], record["answer"], record["answer"].partition("####")[2]),
}
