"""Questions, worked examples and prompts: rows with an id that stays with them from the first stage to the last."""

from pathlib import Path

from cream.files import read_rows

EMBEDDED = Path(__file__).resolve().parents[1] / "data" / "arithmetic"
FIELDS = {
    "seed": ("id", "task", "question", "answer", "response"),
    "prompts": ("id", "task", "question", "answer"),
    "test": ("id", "task", "question", "answer"),
}
INSTRUCTION = 'Think step by step and end with "Answer:".'  # the paper's task suffix, in our words


def read_source(source, root="."):
    """{"seed", "prompts", "test"} -> rows, from seed.jsonl, prompts.jsonl and test.jsonl in a folder (seen from
    `root`), or "embedded".

    A row has id, task, question and answer (text), `response` if it is a worked seed example, and may have `choices`,
    the option texts of a multiple-choice question, whose answer is a letter.
    """
    folder = EMBEDDED if source == "embedded" else Path(root) / Path(source).expanduser()
    return {split: _read_split(folder / f"{split}.jsonl", fields) for split, fields in FIELDS.items()}


def drop_repeats(rows, seen):
    """The rows whose question is new, and how many repeated one of `seen`, which grows by the new ones."""
    kept = []
    for row in rows:
        question = ask(row)
        if question not in seen:
            seen.add(question)
            kept.append(row)
    return kept, len(rows) - len(kept)


def take(rows, count, what):
    """The first `count` rows and the rest; a ValueError where there are too few."""
    if len(rows) < count:
        raise ValueError(f"{count} {what} are asked for and {len(rows)} are left: lower it in params.yaml (data)")
    return rows[:count], rows[count:]


def ask(row):
    """The user's message: the question, its lettered options if it has any, and the instruction."""
    options = [f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(row.get("choices") or [])]
    return "\n".join([row["question"], *options]) + f"\n{INSTRUCTION}"


def prompt_ids(tokenizer, row):
    """The token ids of the chat prompt, by the model's own template, up to where the assistant begins to write."""
    message = {"role": "user", "content": ask(row)}
    return list(tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=True)["input_ids"])


def response_ids(tokenizer, row):
    """The token ids of a worked example's response, the end token included."""
    return tokenizer(row["response"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]


def check_context(tokenizer, rows, max_new_tokens, context):
    """A ValueError if a prompt and its response may not fit the model's context (None: unlimited)."""
    for row in rows:
        length = len(prompt_ids(tokenizer, row))
        if context is not None and length + max_new_tokens > context:
            raise ValueError(
                f"the prompt {row['id']} has {length} tokens; with {max_new_tokens} new ones it exceeds the model's "
                f"context of {context}: shorten or remove it, or lower max_new_tokens in params.yaml"
            )


def _read_split(path, fields):
    if not path.exists():
        raise ValueError(f"{path} does not exist: data.source in params.yaml must name a folder that holds it")
    rows = read_rows(path)
    for number, row in enumerate(rows, start=1):
        wrong = [field for field in fields if not isinstance(row.get(field), str) or not row[field].strip()]
        if wrong:
            raise ValueError(f"{path}, line {number}: {' and '.join(wrong)} must be text: mend or remove that line")
    ids = [row["id"] for row in rows]
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise ValueError(f"{path}: the id {twice} stands twice: give every row its own")
    return rows
