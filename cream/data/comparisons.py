"""What models are compared on: questions for the arena, and pairs of responses of which one is preferred."""

import random
from pathlib import Path

import pandas as pd

from cream.data.errors import InputError
from cream.data.files import read_rows
from cream.data.rows import is_text


def read_questions(path, count, seed):
    """`count` of the rows of a JSON Lines file (all, if there are fewer), drawn by the seed, in the file's order. A row has a
    question; what else it may have is told in cream/data/rows.py."""
    rows = _rows(path, {"question"}, {"instruction", "task"})
    for number, row in enumerate(rows, start=1):
        choices = row.get("choices") or []
        if not isinstance(choices, list) or not all(map(is_text, choices)):
            raise InputError(f"{path}, line {number}: choices must be a list of texts: mend or remove that line")
    drawn = sorted(random.Random(seed).sample(range(len(rows)), min(count, len(rows))))
    return [{**rows[i], "id": rows[i].get("id", f"line {i + 1}"), "task": rows[i].get("task") or "no task"} for i in drawn]


def read_preferences(path):
    """The pairs of a file with RewardBench's columns, JSON Lines or Parquet: prompt, chosen, rejected (text) and, perhaps,
    subset. Other columns are left out."""
    rows = _rows(path, {"prompt", "chosen", "rejected"}, {"subset"})
    table = pd.DataFrame(rows).reindex(columns=["prompt", "chosen", "rejected", "subset"])
    return table.fillna({"subset": "no subset"})


def _rows(path, texts, perhaps=frozenset()):
    """The rows of a file, each checked: it has text in these columns, and text or nothing in those that it has perhaps."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path.resolve()}: give one with a row for each comparison")
    kind, rows = ("row", _read_parquet(path)) if path.suffix == ".parquet" else ("line", read_rows(path))
    for number, row in enumerate(rows, start=1):
        wrong = [column for column in texts if not is_text(row.get(column))]
        wrong += [column for column in perhaps if not isinstance(row.get(column) or "", str)]
        if wrong:
            raise InputError(f"{path}, {kind} {number}: {' and '.join(sorted(wrong))} must be text: mend or remove that {kind}")
    if not rows:
        raise InputError(f"{path} has no rows: give it at least one")
    return rows


def _read_parquet(path):
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException):
        raise InputError(f"{path} is not a Parquet file: mend it") from None
